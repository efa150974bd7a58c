"""The command with stages that compute nothing: order, table, failures, what is written."""

import csv
import json
import math
import os
import re
from pathlib import Path

import pytest
from fakes import SOURCES, FakeRunner, read_log, write_llava

from compressors.errors import UsageError
from experiments.runtime.bars import RichReporter
from experiments.runtime.progress import PlainReporter
from experiments.store.results import ScoreGroup, ScoreRow
from experiments.sweep import __main__ as sweep
from experiments.sweep import score_table
from experiments.sweep.request import read_request

NAMES = [f"{key}={values[0]}" for key, values in SOURCES.items()]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log"


@pytest.fixture
def command(tmp_path, log):
    """main(), with the output directory below tmp_path."""

    def call(*arguments, runner=None, check=lambda _: None):
        return sweep.main([*NAMES, f"out={tmp_path / 'out'}", *arguments], runner or FakeRunner(log), check)

    return call


def rows_of(path):
    with open(path) as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def test_one_cell(command, tmp_path, capsys):
    assert command("compressor=sap+embq") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "test: 8 questions" in out
    lines = [[w.strip() for w in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("|")]
    assert lines[0] == ["", "visual tokens", "query tokens", "overall", "presence", "recognition"]
    assert lines[2] == ["chance", "", "", "75.0", "66.7", "100.0"]
    assert [line[0] for line in lines[3:]] == ["blind", "sap+embq"]
    assert lines[4] == ["sap+embq", "16", "9", "50.0 ±28.5", "50.0", "100.0"]
    assert (tmp_path / "out" / "table.md").read_text() in out + "\n"


def test_seeds_make_one_row(command, tmp_path):
    assert command("compressor=avg_pool,sap", "seed=0,2") == 0
    rows = rows_of(tmp_path / "out" / "table.csv")
    assert list(rows) == ["chance", "blind", "avg_pool", "sap"]
    assert rows["sap"]["seeds"] == "2" and rows["blind"]["seeds"] == "1"
    assert float(rows["sap"]["overall"]) == 62.5  # 50 and 75
    assert float(rows["sap"]["overall_pm"]) == pytest.approx(100 * math.sqrt(2 * 0.125**2), abs=1e-3)


def test_shared_stages_run_once(command, log):
    assert command("compressor=sap,sap+embq", "embq.at=2,3", "blind=false") == 0
    assert {kind: read_log(log).count(kind) for kind in set(read_log(log))} == {
        "data": 1,
        "features test": 1,
        "features pretrain": 1,
        "pretrain": 1,
        "finetune": 3,
        "evaluate": 3,
    }


def test_a_second_run_computes_nothing_and_writes_the_same(command, log, tmp_path):
    command("compressor=sap", "seed=0,1")
    before = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    log.unlink()
    assert command("compressor=sap", "seed=0,1", check=lambda _: pytest.fail("nothing to check")) == 0
    assert not log.exists()
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["data/*/picture_vqa/test.json", "evaluate/*/predictions.jsonl"])
def test_a_table_is_of_the_results_as_they_were_written(command, tmp_path, name, workers):
    command("compressor=sap", "blind=false")
    before = (tmp_path / "out" / "table.csv").read_bytes()
    for size in (None, 20):
        [path] = (tmp_path / "out").glob(name)
        path.write_text(path.read_text().replace('"yes"', '"no!"'))
        if size is not None:
            os.truncate(path, size)
        assert command("compressor=sap", "blind=false", f"launch.workers={workers}") == 0
        assert (tmp_path / "out" / "table.csv").read_bytes() == before


def test_the_cell_s_directory(command, tmp_path):
    command("compressor=sap+embq", "blind=false", "embq.at=[2,3]")
    (folder,) = (tmp_path / "out" / "cells").iterdir()
    assert re.fullmatch(r"sap\+embq_seed=0-[0-9a-f]{8}", folder.name)
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.yaml",
        "metrics.json",
        "predictions.jsonl",
        "run.yaml",
        "stages.json",
    ]
    assert "compressor: sap+embq" in (folder / "config.yaml").read_text()
    for name in json.loads((folder / "stages.json").read_text()):
        assert (tmp_path / "out" / name / "done.json").exists()


def failing(log, kind_to_fail, error):
    """A runner whose stages of one kind fail for seed 1."""
    runner = FakeRunner(log)

    def choose(kind):
        def run(config, *arguments, **keywords):
            if kind == kind_to_fail and config.seed == 1:
                raise error
            return runner(kind)(config, *arguments, **keywords)

        return run

    return choose


def test_a_failed_cell_does_not_stop_the_others(command, log, tmp_path, capsys):
    bad = failing(log, "pretrain", RuntimeError("first\nCUDA out of memory"))
    assert command("compressor=sap,sap+embq", "seed=0,1,2", runner=bad) == 1
    out = capsys.readouterr().out
    found = re.findall(r"^failed: (.*): pretrain/\w+: RuntimeError: CUDA out of memory; see (.*)$", out, re.M)
    assert [cell for cell, _ in found] == ["sap seed=1", "sap+embq seed=1"]  # tried once, told twice
    assert "Traceback" in Path(found[0][1]).read_text()
    assert rows_of(tmp_path / "out" / "table.csv")["sap"]["seeds"] == "2"
    assert command("compressor=sap,sap+embq", "seed=0,1,2") == 0  # and a rerun retries it
    assert rows_of(tmp_path / "out" / "table.csv")["sap"]["seeds"] == "3"


def test_ctrl_c(command, log, capsys):
    assert command("seed=1", runner=failing(log, "finetune", KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "error: interrupted; the same command goes on where it stopped\n"


def test_disk_full_in_a_stage(command, log, capsys):
    bad = failing(log, "finetune", OSError(28, "No space left on device"))
    assert command("seed=1", runner=bad) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(r"error: .*/finetune/\w+\.partial: No space left on device; free .*out=DIR\n", line)
    assert command("seed=1") == 0


def test_plan(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert command("compressor=sap,sap+embq", "--plan") == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    rows = [re.split(r"\s*│\s*", line.strip("│ \n")) for line in out.splitlines() if "│" in line]
    pretrain, total = (row for row in rows if row[0] == "pretrain")
    assert pretrain[2:] == ["sap seed=0", "2", "to run", "no estimate"]
    assert total[1:] == ["1", "2", "0", "1", "no estimate"] and "\nno estimate: " in out
    command("compressor=sap", "blind=false")
    capsys.readouterr()
    assert command("compressor=sap,sap+embq", "--plan", "blind=false") == 0
    out = capsys.readouterr().out
    assert out.count("cached") > 4 and "to run" in out


def test_rows_that_see_nothing_are_named():
    def row(label: str, *shares: float, blind: bool = False) -> ScoreRow:
        runs = [{"overall": share, "families": {}, "n": 1000} for share in shares]
        return ScoreRow(label, runs, blind=blind)

    # whatever it is called: compressor=none in a sweep of one's own takes the place of the row that is added
    rows = [
        row("chance", 0.2),
        row("none", 0.3, blind=True),
        row("sap", 0.5, 0.6),
        row("qformer", 0.33),
        row("x", 0.1),
    ]
    (note,) = score_table.make_blind_notes(ScoreGroup("", rows))
    assert "blind, as far as these questions can tell: qformer, x. " in note
    assert note in score_table.format_score_markdown([ScoreGroup("", rows)])
    assert (
        score_table.make_blind_notes(ScoreGroup("", rows[:3]))
        == score_table.make_blind_notes(ScoreGroup("", rows[2:]))
        == []
    )


def test_wilson():
    low, high = score_table.find_wilson_interval(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert score_table.find_wilson_interval(1.0, 10)[0] == pytest.approx(0.7225, abs=1e-4)


def test_several_test_sets_are_several_tables():
    run = {"overall": 0.5, "families": {"a": 0.5}, "n": 4}
    groups = []
    for name in ("test", "tune"):
        groups.append(ScoreGroup(f"{name}: 4 questions", [ScoreRow("sap", [run])], name))
    assert score_table.format_score_markdown(groups) == (
        "### test: 4 questions\n"
        "\n"
        "|     | visual tokens | query tokens |    overall |\n"
        "| --- | ------------: | -----------: | ---------: |\n"
        "| sap |               |              | 50.0 ±35.0 |\n"
        "\n"
        "### tune: 4 questions\n"
        "\n"
        "|     | visual tokens | query tokens |    overall |\n"
        "| --- | ------------: | -----------: | ---------: |\n"
        "| sap |               |              | 50.0 ±35.0 |\n"
        "\n"
        f"{score_table.SCORE_NOTE}\n"
    )
    assert score_table.format_score_csv(groups).splitlines()[2].startswith("tune,sap,1,4")
    hub_set = ScoreGroup("hf:owner/name:test: 4 questions", [ScoreRow("sap", [run])], "hf:owner/name:test")
    assert score_table.format_score_csv([hub_set]).splitlines()[1].startswith("hf:owner/name:test,sap,")


@pytest.mark.parametrize(("width", "tables"), [(80, 3), (160, 1)])
def test_a_narrow_screen_shows_everything(width, tables, capsys):
    from rich.console import Console

    names = ("attribute", "counting", "presence", "reading", "recognition", "relation")
    run = {"overall": 0.5, "families": {name: i / 10 for i, name in enumerate(names)}, "n": 4}
    found = score_table.make_screen_tables(
        ScoreGroup("test: 4 questions", [ScoreRow("sap data.test=[a]", [run], [61.0])]), width
    )
    Console(width=width).print(*found, sep="")
    out = capsys.readouterr().out
    assert len(found) == tables
    assert all(word in out for word in ("4 questions", "=[a]", "50.0 ±", "1:01", "40.0", "relati"))


@pytest.mark.parametrize("kind", [PlainReporter, RichReporter])
def test_reporters(kind, capsys):
    from rich.console import Console

    with kind(Console()) as report:
        report.announce_cells(1)
        report.begin_cell("sap [seed=0]")
        report.begin_stage("pretrain 0123")
        report.announce_steps(10, done=3)
        report.advance_steps(2, loss=1.23456)
        report.write_note("a [note]")
        lanes = [report.open_lane(number, "avg_pool [seed=0]") for number in (0, 3)]
        lanes[1].begin_stage("finetune 4567")
        lanes[1].write_warning("careful")
        report.finish_cell("avg_pool")
    out = capsys.readouterr().out
    assert "a [note]" in out and "(3) avg_pool [seed=0]: warning: careful" in out
    if kind is PlainReporter:
        assert out.splitlines()[0] == "[1/1] sap [seed=0]"
        assert "[2/1] avg_pool" in out and "  (3) avg_pool [seed=0]: finetune 4567 ..." in out
        assert re.fullmatch(r"  pretrain 0123: 2 steps, 0 s  loss 1\.235", out.splitlines()[-1])


def test_blind_and_seeing_cells_of_one_s_own_images_share_a_table(command, tmp_path, capsys):
    """A blind cell does not depend on the images, and answers the same questions."""
    path = write_llava(tmp_path / "own.json", images=True)
    files = [f"data.{role}={path}" for role in ("pretrain", "train", "test")]
    assert command("compressor=sap", "data.dataset=null", *files) == 0
    assert capsys.readouterr().out.count("### ") == 1
    assert list(rows_of(tmp_path / "out" / "table.csv")) == ["chance", "blind", "sap"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.strategy=ddp,fsdp"], "trainer.strategy=ddp,fsdp: changes no result, so that its rows are"),
        (["trainer.devices=1,2"], "trainer.devices=1,2: changes no result"),
    ],
)
def test_rows_that_would_be_one(command, capsys, words, message):
    assert command(*words) == 2
    assert message in capsys.readouterr().err


def test_rows_of_several_output_directories_are_refused(tmp_path):
    for seed in (1, 2):
        (tmp_path / f"{seed}.yaml").write_text(f"preset: tiny\nout: {tmp_path / 'out'}{seed}\nseed: {seed}\n")
    settings = {**SOURCES, "preset": [f"{tmp_path / '1.yaml'}", f"{tmp_path / '2.yaml'}"]}
    with pytest.raises(UsageError, match="^out=.*/out1,.*/out2: takes one value; leave it out of rows and"):
        read_request(settings)
    assert len(read_request({**settings, "out": [str(tmp_path)], "blind": ["false"]}).jobs) == 2


def test_blind_cells_of_other_data_for_stage_1_are_one(command, tmp_path):
    assert command("data.pretrain=pretrain,train", "blind=true") == 0
    assert [path.name[:11] for path in (tmp_path / "out" / "cells").glob("blind*")] == ["blind_seed="]


def test_embedded_data_for_stage_1_beside_own_data_are_told(command, tmp_path, capsys):
    own = write_llava(tmp_path / "own.json", images=True)
    note = (
        "stage 1 trains on picture_vqa (data.pretrain=pretrain), which is the default; for data of your own"
    )
    lines = {
        f"data.train={own}": True,
        f"data.train={own} --plan": True,
        f"data.train={own} data.pretrain=pretrain": False,
        f"data.train={own} data.pretrain={own}": False,
        f"data.train={own} compressor=none": False,
        f"data.test={own}": False,
    }
    for line, is_told in lines.items():
        assert command("blind=false", *line.split()) == 0
        assert (note in capsys.readouterr().out) is is_told, line


def test_a_narrow_plan_tells_rows_apart(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / "a_folder_of_a_long_name_indeed"
    folder.mkdir()
    files = [str(write_llava(folder / f"{i}.json", images=True, samples=i)) for i in (2, 3)]
    assert command("compressor=sap", f"data.train={','.join(files)}", "--plan", "blind=false") == 0
    out = capsys.readouterr().out
    assert "\u2026" not in out and max(map(len, out.splitlines()[2:20])) <= 80


def test_blind_rows_are_told_apart_as_their_settings_are_typed(command, tmp_path):
    own = [str(write_llava(tmp_path / f"{i}.json", images=True, samples=i)) for i in (2, 3)]
    assert command("compressor=sap", f"data.train={','.join(own)}") == 0
    rows = rows_of(tmp_path / "out" / "table.csv")
    assert [label for label in rows if label.startswith("blind ")] == [
        f"blind data.train=[{path}]" for path in own
    ]


def test_blind_cells_that_differ_are_told_apart(command, tmp_path):
    assert command("compressor=sap", "data.max_length=256,512") == 0
    rows = rows_of(tmp_path / "out" / "table.csv")
    assert [label for label in rows if "blind" in label] == [
        "blind data.max_length=256",
        "blind data.max_length=512",
    ]
    assert {row["seeds"] for label, row in rows.items() if label != "chance"} == {"1"}


def test_a_scale_is_nothing_to_a_blind_cell(command, log):
    assert command("compressor=matryoshka", "evaluate.scale=2,4") == 0
    assert read_log(log).count("evaluate") == 3


def test_long_labels_keep_the_seed(command, tmp_path):
    path = tmp_path / "long.yaml"
    path.write_text(f"rows:\n- {{label: {'very ' * 30}, overrides: [compressor=sap]}}\n")
    assert command(f"table={path}", "seed=0,12", "blind=false") == 0
    names = [each.name for each in (tmp_path / "out" / "cells").iterdir()]
    assert sorted(re.search(r"_seed=(\d+)-", name)[1] for name in names) == ["0", "12"]
    assert all(len(name) <= 80 + 9 for name in names)


def test_bars_in_labels_do_not_cut_a_markdown_table(command, tmp_path):
    assert command("compressor=sap", "prompt.user=<|user|>,USER:", "blind=false") == 0
    lines = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")}) == 1


def test_a_pruned_row_shows_what_is_left_of_its_tokens():
    def make_run(**efficiency):
        return {
            "overall": 0.5,
            "families": {"all": 0.5},
            "n": 4,
            "counts": {"all": 4},
            "efficiency": efficiency,
        }

    counts = {"visual_tokens": 16, "query_tokens": 4}
    plain = ScoreRow("sap", [make_run(**counts)])
    pruned = ScoreRow("sap prune=fastv", [make_run(**counts, average_visual_tokens=8.04)])
    lines = score_table.make_score_lines(ScoreGroup("", [plain, pruned]))
    assert [line[1:3] for line in lines[1:]] == [["16", "4"], ["16 (8.0)", "4"]]
    assert "in brackets: what a pruner leaves" in " ".join(score_table.make_notes(ScoreGroup("", [pruned])))
    assert not score_table.make_notes(ScoreGroup("", [plain]))
