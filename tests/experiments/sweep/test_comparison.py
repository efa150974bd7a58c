"""A row beside those of the study that is installed, and how long it will take."""

import dataclasses
import json
import re
import shutil

import pytest
from fakes import FakeRunner, write_llava

from ablations import report, report_files, study, study_scores
from compressors.key_value import parse_settings
from experiments.store.store import Store
from experiments.sweep import __main__ as sweep
from experiments.sweep import comparison, score_table, studies
from experiments.sweep.request import read_request


def compare(tmp_path, *settings):
    store = Store(tmp_path / "out", runner=FakeRunner(tmp_path / "log"))
    jobs = read_request(parse_settings(list(settings))).jobs
    return comparison.find_comparison(jobs, store)


@pytest.fixture
def command(tmp_path):
    """The README's command, with stages that compute nothing."""

    def call(*arguments):
        return sweep.main(
            [f"out={tmp_path / 'out'}", *arguments], FakeRunner(tmp_path / "log"), lambda _: None
        )

    return call


def test_the_study_s_rows_of_the_same_setting(tmp_path):
    found = compare(tmp_path, "compressor=sap+embq", "seed=3", "embq.fusion=gated", "prune=null")
    assert found.name == "tiny" and [row.label for row in found.rows] == [
        "chance",
        "blind (none)",
        "identity (uncompressed)",
        "avg_pool",
    ]
    overall = [round(score_table.average_row_score(row, None)[0], 1) for row in found.rows]
    assert overall == [19.5, 29.6, 88.7, 76.2]  # as in the committed scores.csv
    assert [len(row.runs) for row in found.rows] == [1, 1, 5, 5]


@pytest.mark.parametrize("setting", ["finetune.epochs=1", "data.scale=0.5", "data.seed=1"])
def test_none_of_another_setting(tmp_path, setting):
    assert compare(tmp_path, "compressor=sap", setting).study is None


def test_a_row_of_another_recipe_is_left_out(tmp_path):
    """A blind cell has no stage 1, so another one changes nothing of it."""
    found = compare(tmp_path, "compressor=sap", "pretrain.epochs=3")
    assert [row.label for row in found.rows] == ["chance", "blind (none)"]


def test_files_are_compared_with_nothing(tmp_path):
    path = write_llava(tmp_path / "data.json", images=True)
    settings = [f"data.{role}={path}" for role in ("pretrain", "train", "test")]
    assert compare(tmp_path, "compressor=sap", *settings).study is None


def test_a_row_is_shown_before_the_next_cell_begins(command, capsys):
    assert command("compressor=sap+embq") == 0
    out = capsys.readouterr().out
    first, _, rest = out.partition("[2/2] blind")
    assert re.search(
        r"about \d+:\d\d min of work, about \d+:\d\d min to the first row \(as the study 'tiny'", first
    )
    assert "yours may be faster or slower" in first
    lines = [line for line in first.splitlines() if line.lstrip().startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "chance",
        "blind (none)",
        "identity (uncompressed) (5 seeds)",
        "avg_pool (5 seeds)",
        "sap+embq seed=0",
    ]
    assert "study 'tiny', in ablations/results/tiny, computed on one thread of an AMD EPYC" in first
    assert "identity" not in rest and rest.count("blind seed=0: 50.0 % overall") == 1


def test_a_damaged_study_does_not_stop_a_sweep(command, tmp_path, monkeypatch, capsys):
    damaged = tmp_path / "study"
    damaged.mkdir()
    for folder, words in ((damaged, "no comparison with the study 'tiny'"), (tmp_path / "none", "")):
        changed = dataclasses.replace(study.TINY, folder=folder)
        monkeypatch.setattr(study, "TINY", changed)
        assert command("compressor=sap", f"seed={len(words)}", "blind=false") == 0
        assert ("no comparison" in capsys.readouterr().out) == bool(words)


def test_nothing_is_told_twice(command, capsys):
    command("compressor=sap", "blind=false")
    capsys.readouterr()
    assert command("compressor=sap", "blind=false") == 0
    out = capsys.readouterr().out
    assert "study" not in out and "of work" not in out


def test_workers_rows_are_shown_too(command, capsys):
    assert command("compressor=sap", "launch.workers=2") == 0
    assert capsys.readouterr().out.count("identity (uncompressed) (5 seeds)") == 1


def test_the_plan_tells_the_times_that_the_sweep_announces(command, capsys):
    assert command("compressor=sap", "blind=false", "--plan") == 0
    plan = capsys.readouterr().out
    assert "of work left (as the study 'tiny' took on" in plan
    assert "no estimate" not in plan
    assert command("compressor=sap", "blind=false", "data.scale=0.5", "--plan") == 0  # no study has that
    assert "no estimate: no such stage has been measured in this output directory" in capsys.readouterr().out


def test_own_times_come_first(command, capsys):
    command("compressor=sap", "seed=0", "blind=false")
    capsys.readouterr()
    assert command("compressor=sap", "seed=1", "blind=false") == 0
    assert "of work (as measured in this output directory)" in capsys.readouterr().out


def test_earlier_takes_the_study_by_its_name(capsys):
    asked = read_request(parse_settings(["compressor=sap", "seed=4,99", "earlier=tiny", "blind=false"]))
    assert asked.left_out == 1 and [cell.config.seed for cell, _ in asked.jobs] == [99]
    assert studies.find_study_folder(study.TINY_FOLDER) == study.TINY_FOLDER
    assert sweep.main(["compressor=sap", "earlier=tyni"]) == 2
    error = capsys.readouterr().err
    assert (
        "earlier=tyni: no such folder" in error and "did you mean 'tiny'?" in error and error.count("\n") == 1
    )


def test_a_report_takes_it_too(tmp_path, capsys):

    assert (
        report.main(["table=5", f"out={tmp_path / 'none'}", "earlier=tiny", f"to={tmp_path / 'report'}"]) == 0
    )
    taken = report_files.load_report(tmp_path / "report").tables[0]
    [kept] = [table for table in report_files.load_report(study.TINY_FOLDER).tables if table.name == "5"]
    assert {row.label: row.keys for row in taken.rows} == {row.label: row.keys for row in kept.rows}
    capsys.readouterr()


def test_a_study_without_times(tmp_path):
    folder = tmp_path / "a" / "b" / "study"
    shutil.copytree(study.TINY_FOLDER, folder)
    (folder / study_scores.TIMES_FILE).unlink()
    scores = study.read_scores(folder)
    machine = json.loads((folder / study.REPORT_FILE).read_text())["made"]["machine"]
    assert scores.times == [] and scores.machine == machine and scores.place == "a/b/study"
    assert len(scores.cells) == len(study.read_evaluation_keys(folder))


def test_times_are_of_the_notes(command, tmp_path):
    command("compressor=sap", "seed=0,1", "blind=false")
    study_scores.write_times(tmp_path / "out", tmp_path, "here")
    shutil.copytree(study.TINY_FOLDER, tmp_path / "study")
    shutil.copy(tmp_path / "times.json", tmp_path / "study")
    scores = study.read_scores(tmp_path / "study")
    assert scores.machine == "here"
    assert sorted(time.load.kind for time in scores.times) == [
        "data",
        "evaluate",
        "features",
        "finetune",
        "pretrain",
    ]


def test_times_of_other_work_stay(command, tmp_path):
    command("compressor=sap", "seed=0", "blind=false")
    shutil.copy(study.TINY_FOLDER / study_scores.TIMES_FILE, tmp_path)
    before = read_times(tmp_path)
    for entry in before:
        entry["load"].setdefault("data", None)  # which older ones do not have
    study_scores.write_times(tmp_path / "out", tmp_path, "here")
    after = read_times(tmp_path)
    loads_after = [entry["load"] for entry in after]
    assert all(entry["load"] in loads_after for entry in before)
    new_kinds = [entry["load"]["kind"] for entry in after if entry not in before]
    assert sorted(new_kinds) == ["data", "evaluate", "features", "finetune", "pretrain"]


def read_times(folder):
    return json.loads((folder / study_scores.TIMES_FILE).read_text())["stages"]


def test_a_reference_that_is_trained_stands_there_once(command, capsys):
    assert command("compressor=avg_pool,sap", "blind=false") == 0
    first, _, rest = capsys.readouterr().out.partition("[2/2] sap")
    lines = [line for line in first.splitlines() if line.lstrip().startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "chance",
        "blind (none)",
        "identity (uncompressed) (5 seeds)",
        "avg_pool seed=0",
    ]
    assert first.count("rows but the last: study 'tiny'") == 1 and "rows but" not in rest


def test_a_cell_of_another_recipe_stands_alone(command, capsys):
    assert command("compressor=sap", "blind=false") == 0
    capsys.readouterr()
    # the first cell, which the study's rows are those of, has finished before
    assert command("compressor=sap", "finetune.epochs=2,1", "blind=false") == 0
    out = capsys.readouterr().out
    assert "identity" not in out and "rows but the last" not in out
