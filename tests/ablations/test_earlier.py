"""Rows of an earlier report beside new cells: the same numbers as if all had been computed together."""

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from made_cells import fill

from ablations import decide, report, report_files, study
from ablations.writing.grids import sentences
from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config import tables
from experiments.store.plan import plan_stages
from experiments.sweep import request

COMMITTED = Path(report.__file__).parent / "results" / "tiny"
pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Table 5 at seeds 0 to 2, computed in one place, and its report."""
    root = tmp_path_factory.mktemp("whole")
    fill(root, ["5"], seed="0,1,2")
    assert report.main(["table=5", f"out={root}", f"to={root / 'report'}"]) == 0
    return root / "report"


def part(root: Path, rows=("replace", "add", "gated"), seeds=(0, 1, 2)) -> Path:
    """A directory where these cells of Table 5 have finished."""
    fill(root, ["5"], lambda label, seed: label not in rows or seed not in seeds, seed="0,1,2")
    return root


def test_parts_give_what_the_whole_gives(whole, tmp_path):
    first = part(tmp_path / "first", seeds=[0])
    second = part(tmp_path / "second", ["replace"], [1, 2])
    third = part(tmp_path / "third", seeds=[1])
    assert report.main(["table=5", "seed=0,1,2", f"out={first}"]) == 0
    assert report.main(["table=5", "seed=0,1,2", f"out={second}", f"earlier={first / 'report'}"]) == 0
    assert report.main(["table=5", f"out={third}", f"earlier={second / 'report'}"]) == 0
    missing = report_files.load_report(third / "report").tables[0]
    assert missing.sweep.endswith(f"earlier={second / 'report'}")
    assert {row.label: row.missing for row in missing.rows if row.missing} == {"add": [2], "gated": [2]}
    fourth = part(tmp_path / "fourth", seeds=[2])
    assert report.main(["table=5", f"out={fourth}", f"earlier={third / 'report'}"]) == 0
    assert (fourth / "report/scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    found, looks = split_looks(fourth / "report/claims.csv")
    wanted, no_looks = split_looks(whole / "claims.csv")
    assert found == wanted
    assert looks == {"", "2"} and no_looks == {""}  # the third report had two seeds of all rows


def test_seeds_of_one_pair_are_a_look(tmp_path):
    parts = [(["replace", "add", "gated"], [0, 1]), (["replace", "add"], [2]), (["gated"], [2])]
    earlier_arguments = []
    for number, (rows, seeds) in enumerate(parts):
        out = part(tmp_path / str(number), rows, seeds)
        assert report.main(["table=5", f"out={out}", *earlier_arguments]) == 0
        earlier_arguments = [f"earlier={out / 'report'}"]
    [claim] = report_files.load_report(out / "report").tables[0].claims
    assert claim.pairs == (("add", "replace"), ("add", "gated"))
    assert claim.looks == ((2, 2), (3, 2))


def read_looks(folder):
    """Those of the only claim of Table 5, in the report that stands there."""
    [claim] = report_files.load_report(folder).tables[0].claims
    return claim.looks


def damage_outcomes(folder):
    file = folder / "outcomes/table5.npz"
    file.write_bytes(file.read_bytes()[:-5])


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """A directory where Table 5 was reported at two seeds, and has three."""
    root = part(tmp_path_factory.mktemp("looked"), seeds=[0, 1])
    assert report.main(["table=5", f"out={root}"]) == 0
    return part(root)


def report_without_a_table(root):
    assert report.main([f"out={root}"]) == 0


def remove_report(root):
    (root / "report/report.json").unlink()


def forget_file(root):
    """As an earlier version left it, damaged since."""
    (root / "report/looks.json").unlink()
    damage_outcomes(root / "report")


@pytest.mark.parametrize("meanwhile", [report_without_a_table, remove_report, forget_file])
def test_no_look_is_forgotten(looked, tmp_path, meanwhile):
    root = tmp_path / "runs"
    shutil.copytree(looked, root)
    meanwhile(root)
    assert report.main(["table=5", f"out={root}"]) == 0
    assert read_looks(root / "report") == ((2, 2),)
    assert not (root / "report/looks.json.lock").exists()


def test_a_pilot_is_no_look_at_other_cells(tmp_path):
    fill(tmp_path, ["5"], seed="0,1", **{"data.scale": "0.5"})
    assert report.main(["table=5", "data.scale=0.5", f"out={tmp_path}"]) == 0
    part(tmp_path)
    assert report.main(["table=5", f"out={tmp_path}"]) == 0
    assert read_looks(tmp_path / "report") == ()
    fill(tmp_path, ["5"], seed="2", **{"data.scale": "0.5"})
    assert report.main(["table=5", "data.scale=0.5", f"out={tmp_path}"]) == 0
    assert read_looks(tmp_path / "report") == ((2, 2),)


def test_a_report_at_other_seeds_knows_its_rows_again(tmp_path):
    part(tmp_path, seeds=[1, 2])
    assert report.main(["table=5", f"out={tmp_path}"]) == 0
    part(tmp_path)
    assert report.main(["table=5", f"out={tmp_path}"]) == 0
    assert read_looks(tmp_path / "report") == ((2, 2),)


def test_looks_are_noted_when_claims_are_decided(tmp_path):
    part(tmp_path)
    assert decide.main(["table=5", "first=2", "limit=3", f"out={tmp_path}"]) == 0
    assert report.main(["table=5", f"out={tmp_path}"]) == 0
    assert read_looks(tmp_path / "report") == ((2, 2),)


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 2}', '{"format": 1, "looks": {"5": [1]}}'])
@pytest.mark.parametrize("command", [report, decide])
def test_damaged_looks_are_refused(looked, tmp_path, capsys, command, content):
    root = tmp_path / "runs"
    shutil.copytree(looked, root)
    (root / "report/looks.json").write_text(content)
    old_report = (root / "report/report.md").read_bytes()
    assert command.main(["table=5", f"out={root}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {root / 'report/looks.json'}: ") and error.count("\n") == 1
    assert (root / "report/report.md").read_bytes() == old_report


def split_looks(path):
    """The lines of a report's claims but for earlier looks, and these, which the parts alone have."""
    lines = list(csv.DictReader(path.read_text().splitlines()))
    looks = {line.pop("looks") for line in lines}
    for line in lines:
        line.pop("corrected")
    return lines, looks


def test_it_says_so(whole, tmp_path):
    out = part(tmp_path / "out", ["gated"], [1])
    assert report.main(["table=5", f"out={out}", f"earlier={whole}"]) == 0
    words = (out / "report" / "report.md").read_text()
    assert "Cells computed: 1, last finished" in words
    assert "Cells taken from an earlier report by the key of their evaluation: 8." in words
    assert "Of that report: Cells computed: 9, last finished" in words


def test_earlier_runs_that_are_alike_are_one_sentence():
    def make_run(day, torch="2.14"):
        return {"cells": 3, "finished": f"2026-11-{day}", "versions": {"torch": torch}, "machine": "a CPU"}

    runs = [make_run(30), make_run(28), make_run(23, "2.13"), make_run(25)]
    assert [sentences.describe_runs(group) for group in sentences.group_alike_runs(runs)] == [
        "3 runs, finished 2026-11-25 to 2026-11-30; torch 2.14; a CPU.",
        "Cells computed: 3, last finished 2026-11-23; torch 2.13; a CPU.",
    ]


def test_a_sweep_leaves_them_out(whole, tmp_path):
    asked = request.read_request(
        parse_settings(["table=5", "seed=0,1,2,3", f"earlier={whole}", "blind=false"])
    )
    assert {cell.config.seed for cell, _ in asked.jobs} == {3} and asked.left_out == 9
    assert [len(rows) for _, rows in asked.views] == [3]
    with pytest.raises(UsageError, match="that report has all 9 cells"):
        request.read_request(parse_settings(["table=5", "seed=0,1,2", f"earlier={whole}", "blind=false"]))
    with pytest.raises(UsageError, match="earlier=no/where: no no/where/report.json"):
        request.read_request(parse_settings(["table=5", "earlier=no/where"]))
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(UsageError, match="not what `python -m ablations.report` wrote"):
        request.read_request(parse_settings(["table=5", f"earlier={tmp_path}"]))


def test_a_sweep_leaves_out_what_the_committed_study_has():
    asked = request.read_request(
        parse_settings(["table=5", "seed=0,1,2,3,4,7", f"earlier={COMMITTED}", "blind=false"])
    )
    assert {cell.config.seed for cell, _ in asked.jobs} == {7} and asked.left_out == 15
    assert len(study.read_evaluation_keys(COMMITTED)) == 576


def test_the_sweep_does_not_wait_for_the_report_s_imports():
    code = (
        "import sys; from experiments.registries import load_offers; load_offers('slothkit.studies'); "
        "load_offers('slothkit.tables'); assert 'ablations.study' in sys.modules; "
        "sys.exit(any(m in sys.modules for m in ('numpy', 'scipy', 'matplotlib', 'torch')))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_another_configuration_is_not_taken(whole, tmp_path, capsys):
    asked = ["table=5", "finetune.epochs=3", f"out={tmp_path / 'none'}", f"earlier={whole}"]
    assert report.main(asked) == 2
    assert "no such directory" in capsys.readouterr().err


def test_own_cells_come_first(whole, tmp_path):
    """What is below out= is told of, whatever an earlier report says."""
    changed = tmp_path / "changed"
    found = report_files.load_report(whole)
    for row in found.tables[0].rows:
        row.outcomes = {seed: ~right for seed, right in row.outcomes.items()}
    changed.mkdir()
    report_files.save_report(found, changed)
    out = part(tmp_path / "out", ["add"])
    assert report.main(["table=5", f"out={out}", f"earlier={changed}"]) == 0
    new, old = (
        {row.label: row for row in report_files.load_report(folder).tables[0].rows}
        for folder in (out / "report", whole)
    )
    assert all(np.array_equal(new["add"].outcomes[s], old["add"].outcomes[s]) for s in (0, 1, 2))
    assert all(np.array_equal(new["gated"].outcomes[s], ~old["gated"].outcomes[s]) for s in (0, 1, 2))


def test_a_report_without_keys_gives_nothing(whole, tmp_path, capsys):
    """As those that were written before keys were."""
    old = tmp_path / "old"
    old.mkdir()
    report_files.save_report(report_files.load_report(whole), old)
    content = json.loads((old / "report.json").read_text())
    for row in content["tables"][0]["rows"]:
        del row["keys"]
    (old / "report.json").write_text(json.dumps(content))
    assert report.main(["table=5", f"out={tmp_path / 'none'}", f"earlier={old}"]) == 2
    assert "no such directory" in capsys.readouterr().err


def test_the_committed_study_has_the_keys_of_today():
    """Else nobody could go on from it: a change of keys has to change them in its report, too."""
    found = {table.name: table for table in report_files.load_report(COMMITTED).tables}
    seeds = set()
    for table in found.values():
        for row in table.rows:
            seeds |= row.outcomes.keys()
    for file in tables.load_table_files(list(found), {"seed": [str(seed) for seed in sorted(seeds)]}):
        rows = {row.label: row for row in found[file.name].rows if row.label != "blind"}
        assert rows.keys() <= {row.label for row in file.rows}
        for row in file.rows:
            if row.label not in rows:  # it joined the table since, and waits to be run
                continue
            today = {cell.config.seed: plan_stages(cell.config).key for cell in row.cells}
            kept = rows[row.label].keys
            assert kept == {seed: today[seed] for seed in rows[row.label].outcomes}, row.label
