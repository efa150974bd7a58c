"""Deciding claims from the committed study: what is run for whom, and where it ends."""

from pathlib import Path

import pytest
from made_cells import fill

from ablations import decide, deciding, report_files, study
from ablations.claims import looks, verdicts
from ablations.deciding import TableDecider
from compressors.errors import UsageError
from experiments.config import tables
from experiments.store.store import Store
from experiments.sweep import __main__ as sweep_command

STUDY = Path(decide.__file__).parent / "results" / "tiny"


def make_decider(tmp_path, table="5"):
    return TableDecider(table, {"out": [str(tmp_path)]}, Store(tmp_path), STUDY)


class Runs:
    """Stands for the sweep: what it was asked for, and what it answers."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def __call__(self, labels, seeds):
        self.asked.append((labels, seeds))
        return self.answer


def run_decide(*words):
    return decide.main([*words, f"earlier={STUDY}"])


def test_what_is_decided_needs_no_run(tmp_path, capsys):
    """All rows of Table 5 have five seeds."""
    out = f"out={tmp_path / 'none'}"
    assert run_decide("table=5", "first=3", "limit=5", out, f"to={tmp_path}") == 0
    written = (tmp_path / "decided-5.md").read_text()
    claims = tables.load_table_file("5", {}).path.read_text().count("- text:")
    assert written.count("| 98.") + written.count("| 97.") + written.count("| 96.") == claims
    assert f"{tmp_path / 'decided-5.md'}" in capsys.readouterr().out.replace("\n", "")
    assert not (tmp_path / "none").exists()  # nothing was to be computed
    again = (tmp_path / "decided-5.md").read_bytes()
    assert run_decide("table=5", "first=3", "limit=5", out, f"to={tmp_path}") == 0
    assert (tmp_path / "decided-5.md").read_bytes() == again


def test_the_folder_is_made_before_anything_runs(tmp_path, monkeypatch, capsys):
    asked = []

    def run_sweep(words):
        asked.append(words)
        fill(tmp_path, ["5"], seed="0,1")
        return 0

    monkeypatch.setattr(sweep_command, "main", run_sweep)
    assert decide.main(["table=5", "first=2", "limit=2", f"out={tmp_path}"]) == 0
    assert (tmp_path / "report/decided-5.md").is_file() and len(asked) == 1
    (tmp_path / "file").touch()
    line = ["table=5", "first=3", "limit=3", f"out={tmp_path}", f"to={tmp_path / 'file'}"]
    assert decide.main(line) == 2
    assert str(tmp_path / "file") in capsys.readouterr().err and len(asked) == 1


def test_rows_of_open_claims_get_seeds_and_others_none(tmp_path):
    decider = make_decider(tmp_path, "3")
    runs = Runs(None)
    shown = []
    assert deciding.decide_claims(decider, looks.plan_looks(3, 10), runs, shown.append) == 0
    assert len(shown) == 1  # the first look needs no cells
    ((labels, seeds),) = runs.asked
    held = [claim for claim, decision in decider.decisions.items() if decision.verdict.word == verdicts.HOLDS]
    assert "SAP beats average pooling" in [claim.text for claim in held]
    assert "uncompressed" not in labels and "avg_pool" not in labels
    open_rows = {label for claim in decider.open_claims for label in decider.list_open_rows(claim)}
    [kept] = [table for table in report_files.load_report(study.TINY_FOLDER).tables if table.name == "3"]
    have_all = {row.label for row in kept.rows if {*range(6)} <= row.outcomes.keys()}
    assert set(labels) == open_rows - have_all
    assert seeds[-1] == 5 and set(seeds) <= {3, 4, 5}


def test_a_failed_cell_ends_it(tmp_path):
    decider = make_decider(tmp_path, "3")
    runs = Runs(1)
    assert deciding.decide_claims(decider, looks.plan_looks(3, 10), runs, [].append) == 1
    assert len(runs.asked) == 1


def test_the_last_look_is_final(tmp_path):
    decider = make_decider(tmp_path)
    deciding.decide_claims(decider, looks.plan_looks(5, 5), Runs(1), [].append)
    assert not decider.open_claims
    for decision in decider.decisions.values():
        assert decision.is_final and decision.word != deciding.NOT_YET
        assert decision.look == looks.Look(5, pytest.approx(0.95))


def test_a_plan_computes_nothing(tmp_path, capsys):
    out = tmp_path / "none"
    assert run_decide("table=3", "limit=6", f"out={out}", "--plan") == 0
    printed = capsys.readouterr().out
    assert "looks: with 3 seeds by intervals of 97.5 %, with 6 seeds by intervals of 97.5 %" in printed
    assert "cells" in printed and not out.exists()


def test_labels_with_commas(tmp_path, capsys):
    out = tmp_path / "none"
    assert run_decide("table=longer", "first=6", "limit=6", f"out={out}", "--plan") == 0
    printed = capsys.readouterr().out
    # the rows of six epochs have seeds 0 to 2
    assert '"sap, 6 epochs"' in printed and "seed=3,4,5" in printed
    # an apostrophe opens no quote
    assert run_decide("table=4", "first=6", "limit=6", f"out={out}", "--plan") == 0
    assert '"1/4 of the tower' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "table=: name the table"),
        (["table=33"], "table=33"),
        (["table=5", "seed=0,1"], "seed=0,1: seeds are what is added; set first= and limit="),
        (["table=5", "first=4", "limit=3"], "limit=3: fewer seeds than first=4"),
        (["table=5", "first=1"], "first=1"),
        (["table=5", "embq.dim=8,16"], "embq.dim=8,16: takes one value here"),
        (["table=5", "finetune.lrr=1"], "did you mean 'finetune.lr'"),
        (["table=pruners,5"], "table=pruners,5"),
    ],
)
def test_bad_lines(words, message, capsys, tmp_path):
    assert run_decide(*words, f"out={tmp_path / 'none'}") == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1


def test_a_table_without_claims_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rows:\n- {label: a, overrides: [compressor=sap]}\n")
    with pytest.raises(UsageError, match="makes no claims"):
        make_decider(tmp_path, str(path))


@pytest.mark.parametrize("setting", ["rows=sap", "blind=false"])
def test_what_runs_is_not_chosen(capsys, setting):
    assert run_decide("table=3", setting) == 2
    error = capsys.readouterr().err
    assert f"error: {setting}: is no setting here" in error and error.count("\n") == 1
