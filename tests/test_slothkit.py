"""The module that users import, and the command of the same name."""

import configparser
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from fakes import SOURCES, FakeRunner
from made_cells import fill

import slothkit
from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells
from experiments.sweep import run

ROOT = Path(slothkit.__file__).parent
PICTURE = next((ROOT / "ablations/results").rglob("*.png"))
SMALL = {
    "blind": False,
    "data": {"scale": 0.005},
    "evaluate": {"limit": 12},
    "trainer.accelerator": "cpu",
    "pretrain": {"max_steps": 2, "batch_size": 4},
    "finetune": {"max_steps": 2, "batch_size": 4},
}


@pytest.fixture
def faked(tmp_path, monkeypatch):
    """sweep() with stages that compute nothing."""

    def call(*settings, runner=None, **values):
        monkeypatch.setattr(run, "find_runner", runner or FakeRunner(tmp_path / "log"))
        monkeypatch.setattr(run, "check_model_sizes", lambda _: None)
        sources = {path: texts[0] for path, texts in SOURCES.items()}
        return slothkit.sweep(*settings, quiet=True, out=tmp_path / "out", **sources, **values)

    return call


def start(*arguments, **environment):
    command = [sys.executable, str(ROOT / "slothkit.py"), *arguments]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables)


def test_values_are_spelled_as_on_a_command_line():
    values = {
        "seed": range(2),
        "compressor": ["sap", "avg_pool"],
        "finetune": {"epochs": 1, "query_warmup": 0.5},
        "sap": {"rate": 4},
        "prune": None,
        "embq.at": [[2, 4], 3],
        "data.test": ["a,b.json", "7.json"],
        "data.train": [["a.json"], ["a.json", "b.json"]],
        "data.train_weights": [2, 0.5],
        "trainer": {"devices": [0, 2]},
        "resampler_2d": {"grid": (1, 2)},
        "rows": "x,y",
        "blind": False,
    }
    words = run.make_words(("embq.fusion=gated,add",), values)
    assert parse_settings(words) == {
        "embq.fusion": ["gated", "add"],
        "seed": ["0", "1"],
        "compressor": ["sap", "avg_pool"],
        "finetune.epochs": ["1"],
        "finetune.query_warmup": ["0.5"],
        "sap.rate": ["4"],
        "prune": ["null"],
        "embq.at": ["[2,4]", "3"],
        "data.test": ["['a,b.json','7.json']"],
        "data.train": ["['a.json']", "['a.json','b.json']"],
        "data.train_weights": ["[2,0.5]"],
        "trainer.devices": ["[0,2]"],
        "resampler_2d.grid": ["[1,2]"],
        "rows": ["x", "y"],
        "blind": ["false"],
    }


@pytest.mark.parametrize(
    ("value", "alternatives"),
    [([0, 2], 1), ([[0], [0, 2]], 2), (range(1, 3), 2), ("1,2", 2), (2, 1)],
)
def test_a_list_is_the_value_of_a_setting_that_is_one(value, alternatives):
    words = run.make_words((), {"trainer": {"devices": value}, "seed": [0, 1]})
    cells = make_cells(parse_settings(words))
    assert len(cells) == 2 * alternatives
    if value == [0, 2]:
        assert {cell.config.trainer.devices for cell in cells} == {"[0,2]"}


ODD_TEXTS = [
    "a, b",
    " a ",
    "it's",
    '"a"',
    """it's "a", 'b'""",
    "[a",
    "a]'{b",
    "it's\\new",
    "7",
    "null",
    "a: b",
    "#a",
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_text_in_a_list_or_mapping_stays_as_it_is(text):
    values = {
        "data": {"images": [text], "train": [text, "b.json"], "test": [[text]]},
        "evaluate": {"metric": {text: "anls"}},
        "out": Path(text),
    }
    [cell] = make_cells(parse_settings(run.make_words((), values)))
    assert cell.config.data.train == [text, "b.json"] and cell.config.data.test == [text]
    assert cell.config.evaluate.metric == {text: "anls"}
    assert cell.config.out == text
    if text != "null":  # which is no folder at all, as on a command line
        assert cell.config.data.images == text


def test_a_mapping_is_the_value_of_a_knob_that_is_one():
    values = {"compressor": "matryoshka", "matryoshka": {"host": "sap", "knobs": {"grid_policy": "floor"}}}
    [cell] = make_cells(parse_settings(run.make_words((), values)))
    assert cell.config.parts["matryoshka"] == {"host": "sap", "knobs": {"grid_policy": "floor"}}


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        ((), {"seed": {0, 1}}, "^seed=.*: of type set; give"),
        ((), {"data": {"train": ["a.json", b"b.json"]}}, "^data.train=b'b.json': of type bytes; give"),
        ((), {"finetune": {"epochs": 1}, "finetune.epochs": 2}, "finetune.epochs is given twice"),
        (("compressor=sapp",), {}, "did you mean 'sap'?"),
        (("seed=0",), {"seed": 1}, "seed is given twice"),
        ((), {"seed": []}, r"seed=\[\]: no value"),
        (({"seed": 0},), {}, "expected 'key=value', or a value by name"),
        ((), {"finetune": {"epoch": 1}}, "unknown setting 'finetune.epoch'"),
        ((), {"launch": "sslurm"}, "launch=sslurm: must be one of"),
    ],
)
def test_bad_input_is_the_command_line_s_error(faked, tmp_path, settings, values, message):
    with pytest.raises(slothkit.UsageError, match=message):
        faked(*settings, **values)
    assert not (tmp_path / "out").exists()


def test_results(faked, tmp_path):
    found = faked("compressor=avg_pool,sap", seed=[0, 1])
    assert [(cell.label, cell.seed) for cell in found[:2]] == [("avg_pool", 0), ("avg_pool", 1)]
    assert len(found) == 5 and found[4].label == "blind"
    rows = {row["row"]: row for row in found.rows}
    assert list(rows) == ["chance", "blind", "avg_pool", "sap"]
    assert rows["sap"]["overall"] == 56.25 and rows["sap"]["seeds"] == 2
    assert rows["chance"]["visual_tokens"] is None and rows["sap"]["visual_tokens"] == 16
    assert str(found) == found.table.read_text() == (tmp_path / "out" / "table.md").read_text()
    assert found[1].metrics["overall"] == 0.625 and found[1].config.seed == 1
    assert len(found.predictions) == 5 * 8 and found.predictions[8]["seed"] == 1
    assert all(answer["cut"] is False for answer in found.predictions)
    assert found[0].folder.is_dir() and found[0].key.startswith(found[0].folder.name.split("-")[-1])


def test_cells_that_fail_are_an_exception_with_the_others_results(faked, tmp_path):
    with pytest.raises(slothkit.CellsFailed, match="sap seed=1: pretrain/.*CUDA out of memory; see ") as info:
        faked("compressor=sap", seed=[0, 1], runner=FakeRunner(tmp_path / "log", fail="pretrain"))
    assert [cell.seed for cell in info.value.results] == [0, 0]
    assert [failure.cell.config.seed for failure in info.value.results.failed] == [1]


def test_paths_with_brackets_and_commas(faked, tmp_path):
    preset = tmp_path / "my (1), best.yaml"
    preset.write_text("preset: tiny\n")
    assert [cell.config.preset for cell in faked("compressor=sap", preset=preset, blind=False)] == [
        str(preset)
    ]
    table = tmp_path / "mine (1), best.yaml"
    table.write_text("rows: [{label: a, overrides: [compressor=sap]}]\n")
    assert [cell.label for cell in faked(table=table, blind=False)] == ["a"]
    with pytest.raises(UsageError, match=r"of \(1\), mine: no"):
        faked("compressor=sap", earlier=tmp_path / "of (1), mine", blind=False)


def test_data_frames(faked):
    found = faked("compressor=sap", seed=[0, 1], blind=False)
    try:
        import pandas  # noqa: F401  not among what the tests need
    except ImportError:
        with pytest.raises(UsageError, match="needs pandas: pip install pandas"):
            found.to_pandas()
        return
    assert found.to_pandas().set_index("row").loc["sap", "overall"] == 56.25
    assert found.to_pandas("cells")["seed"].tolist() == [0, 1]
    assert len(found.to_pandas("predictions")) == 16
    with pytest.raises(UsageError, match="what='row': must be one of"):
        found.to_pandas("row")


def test_families_called_as_other_columns(faked):
    pytest.importorskip("pandas")
    found = faked("compressor=sap", blind=False)
    found[0].metrics["families"] |= {"overall": 0.25, "n": 0.625, "folder": 0.75}
    [line] = found.to_pandas("cells").to_dict("records")
    assert line["overall"] == 50 and line["n"] == 8 and line["folder"] == str(found[0].folder)
    assert [line[f"family {name}"] for name in ("overall", "n", "folder")] == [25, 62.5, 75]


@pytest.mark.slow
def test_scores_and_cut_answers_of_a_real_evaluation(tmp_path):
    mapping = {"default": "anls", "presence": "pope"}
    evaluate = {"limit": 12, "max_new_tokens": 1, "metric": mapping}
    [cell] = slothkit.sweep(compressor="sap", out=tmp_path, quiet=True, **{**SMALL, "evaluate": evaluate})
    assert cell.metrics["metric"] == mapping and cell.metrics["chance"]["n"] == 12
    scores = [answer["score"] for answer in cell.predictions]
    assert cell.metrics["overall"] == pytest.approx(sum(scores) / 12)
    # one token is no whole answer, whose end is a token too
    cut = [answer for answer in cell.predictions if answer.get("cut")]
    assert cell.metrics["cut_answers"] == len(cut) > 0
    assert cut == [answer for answer in cell.predictions if answer["prediction"]]


@pytest.mark.slow
def test_a_cell_s_model_answers(tmp_path):
    found = slothkit.sweep(compressor="sap+embq", out=tmp_path, quiet=True, **SMALL)
    model, processor = found[0].load()
    assert not model.training and model.config.compressor == "sap" and processor.image_tokens == 16
    assert len(found[0].predictions) == 12
    shutil.rmtree(next(tmp_path.glob("finetune/*")))
    with pytest.raises(UsageError, match="finetune"):
        found[0].load()


def test_names_are_there_without_importing_anything():
    code = (
        "import sys, slothkit; assert {'sweep', 'register'} <= set(dir(slothkit)); "
        "sys.exit(any(name in sys.modules for name in ('torch', 'rich', 'experiments')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    for name in slothkit.__all__:
        assert getattr(slothkit, name) is not None
    with pytest.raises(AttributeError):
        slothkit.no_such_name  # noqa: B018


def test_one_version():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser["metadata"]["version"] == "attr: slothkit.__version__"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == slothkit.__version__
    assert start("--version").stdout == f"slothkit {slothkit.__version__}\n"


def test_help_names_every_command():
    done = start("--help")
    assert done.returncode == 0 and done.stderr == ""
    for name, (module, _) in slothkit.COMMANDS.items():
        assert f"  {name} " in done.stdout
        words = start(name, "--help").stdout
        assert f"Usage: slothkit {name} " in words
        assert f"python -m {module.removesuffix('.__main__')}" not in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["swep"], "unknown command 'swep'; did you mean 'sweep'?"),
        (["sweep", "seed", "=", "0"], "'seed': expected key=value without spaces around ="),
        (["completion", "fish"], "expected one shell"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    done = start(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "out=no/where"], "no such directory; slothkit sweep out=no/where fills it"),
        (["report", "results=no/where"], "give a folder that `slothkit report` wrote"),
        (["chat", str(PICTURE), "out=no/where"], "train one with slothkit sweep, or"),
        (["attention_maps", "no/where"], "expected slothkit attention_maps MODEL IMAGE"),
        (
            ["sweep", "table=3", "seed=0", "blind=false", "earlier=tiny", f"out={ROOT / 'runs'}"],
            "cells; slothkit report shows them",
        ),
    ],
)
def test_commands_are_shown_as_they_were_called(arguments, message, capsys):
    assert slothkit.main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown and "python -m" not in shown
    word, *settings = arguments
    module, _ = slothkit.COMMANDS[word]
    assert import_module(module).main(settings) == 2
    assert spell_as_module(message) in capsys.readouterr().err


def spell_as_module(message):
    for word, (module, _) in slothkit.COMMANDS.items():
        message = message.replace(f"slothkit {word}", f"python -m {module.removesuffix('.__main__')}")
    return message


def test_a_report_has_modules_and_its_screen_what_was_called(tmp_path, capsys):
    """Its files are read by others, who may have no script."""
    table = tmp_path / "mine.yaml"
    table.write_text(
        "rows:\n- {label: a, overrides: [compressor=sap]}\n- {label: b, overrides: [compressor=random]}\n"
    )
    fill(tmp_path / "runs", [str(table)], skip=lambda label, _: label == "b", seed="0")
    arguments = ["report", f"table={table}", f"out={tmp_path / 'runs'}"]
    assert slothkit.main(arguments) == 0
    shown = capsys.readouterr().out
    assert f"Missing: b (seed 0); slothkit sweep table={table}" in shown.replace("\\", "")
    assert "Command: slothkit report" in shown and "python -m" not in shown
    written = (tmp_path / "runs" / "report" / "report.md").read_text()
    assert "Missing: b (seed 0); python -m experiments.sweep" in written and "slothkit sweep" not in written


@pytest.mark.parametrize("name", ["experiments", "connectors", "compressors"])
def test_a_package_that_hides_ours_is_named(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    first = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import slothkit; "
    code = first + "sys.exit(slothkit.main(['sweep']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / name / '__init__.py'} hides slothkit's own '{name}'")
    assert done.stderr.count("\n") == 1
    done = subprocess.run(
        [sys.executable, "-c", first + "slothkit.sweep()"], cwd=ROOT, capture_output=True, text=True
    )
    assert f"ImportError: {tmp_path / name / '__init__.py'} hides" in done.stderr


@pytest.fixture
def complete(capsys):
    def call(line):
        assert slothkit.main(["complete", line]) == 0
        return capsys.readouterr().out.splitlines()

    return call


def test_completion_is_of_the_settings(complete):
    for line, expected in (("slothkit sw", "sweep "), ("slothkit completion ", "bash")):
        assert expected in start("complete", line).stdout.splitlines()
    assert complete("slothkit sweep trainer.acc") == ["trainer.accelerator="]
    assert "trainer.accelerator=cpu" in complete("slothkit sweep seed=0 trainer.accelerator=c")
    assert complete("slothkit sweep compressor=avg_pool,sa") == ["compressor=avg_pool,sap"]
    assert complete("slothkit sweep compressor=sap+") == [
        "compressor=sap+embq",
        "compressor=sap+llava_mini",
    ]
    assert "embq.at=" in complete("slothkit sweep embq.a")
    assert "table=field" in complete("slothkit report table=f")
    assert complete("slothkit chat mod") == ["model="] and complete("slothkit nothing here") == []
    assert complete("slothkit sweep tower.train=t") == ["tower.train=true"]
    assert complete("slothkit sweep sap.grid_policy=p") == ["sap.grid_policy=pad"]
    assert complete("slothkit sweep blind=f") == ["blind=false"]
    assert complete("slothkit sweep launch=sl") == ["launch=slurm"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes(tmp_path):
    environment = write_shim(tmp_path)
    lines = {"slothkit swe": "sweep", "slothkit sweep trainer.accelerator=cu": "cuda"}
    for line, expected in lines.items():
        words = json.dumps(line)
        code = (
            f"source <(slothkit completion bash); COMP_LINE={words}; COMP_POINT=${{#COMP_LINE}}; _slothkit; "
            'printf "%s\\n" "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, env=environment)
        assert [word.strip() for word in done.stdout.splitlines()] == [expected], done.stderr


def write_shim(folder):
    """A `slothkit` for shells to find."""
    shim = folder / "slothkit"
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "slothkit.py"} "$@"\n')
    shim.chmod(0o755)
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


def read_until(terminal, words, seconds=60.0):
    """What a terminal shows until these words have come, or the time is over."""
    shown = ""
    end = time.monotonic() + seconds
    while words not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    return shown


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes(tmp_path):
    """In a terminal, with tabs: keys, values behind commas, a command behind others, files as values."""
    environment = {**write_shim(tmp_path), "ZDOTDIR": str(tmp_path), "TERM": "dumb", "COLUMNS": "200"}
    (tmp_path / ".zshrc").write_text(
        "autoload -Uz compinit; compinit -u -d $ZDOTDIR/dump\nPS1=READY\nsource <(slothkit completion zsh)\n"
    )
    (tmp_path / "mine.json").write_text("[]")
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        os.execvpe("zsh", ["zsh", "-i"], environment)
    try:
        assert "READY" in read_until(terminal, "READY")
        for line, rest in (
            ("slothkit swe", "ep "),
            ("slothkit sweep compressor=avg_pool,sa", "p"),
            ("true; A=1 slothkit sweep trainer.accelerator=cu", "da"),
            ("slothkit sweep data.train=mi", "ne.json"),
            ("slothkit sweep 'data.train=[other.json,mi", "ne.json'"),  # zsh ends the quotation
        ):
            os.write(terminal, line.encode())
            read_until(terminal, line)
            os.write(terminal, b"\t")
            assert read_until(terminal, rest).rstrip().endswith(rest.rstrip()), line
            os.write(terminal, b"\x15")  # the line is cleared
            read_until(terminal, "READY", 0.5)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(terminal)
