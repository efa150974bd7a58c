"""Bad input through the command line: one line on stderr, exit code 2, no traceback, nothing written."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from fakes import SOURCES, write_llava

from experiments.sweep import __main__ as sweep

SWEEP = [sys.executable, "-m", "experiments.sweep"]
NAMES = [f"{key}={values[0]}" for key, values in SOURCES.items()]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


def tree(root: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in root.rglob("*")}


@pytest.fixture
def refused(tmp_path):
    """Run a command that must be refused and must leave nothing; returns its line on stderr."""

    def run(*arguments: str, command=(*SWEEP, *NAMES), **keywords) -> str:
        before = tree(tmp_path)
        found = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=120,
            **keywords,
        )
        assert "Traceback" not in found.stderr + found.stdout
        assert found.returncode == 2, found.stderr
        assert found.stderr.startswith("error: ") and found.stderr.count("\n") == 1
        assert tree(tmp_path) == before
        return found.stderr

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compressor=sapp"], "did you mean 'sap'?"),
        (["compressor=sap+embk"], "did you mean 'embq'?"),
        (["sap.rte=3"], "no knob 'rte'; did you mean 'rate'?"),
        (["preset=tinny"], "did you mean 'tiny'?"),
        (["table=99"], "table=99: no "),
        (["rows=sap"], "rows=sap: rows of which table? name it with table="),
        (["table=3", "rows=[sap,sapp]"], "rows=sapp: no row of table 3 is called so; did you mean 'sap'?"),
        (["table=3", "rows=[]"], "rows=: no row of table 3 is called so; Known: 1 query, 16 queries"),
        (["table=3", "rows=sapp"], "rows=sapp: no row of table 3 is called so; did you mean 'sap'?"),
        (["seed=zero"], "seed='zero': expected int"),
        (["embq.dim=wide"], "embq.dim='wide': expected int"),
        (["finetune.lrr=1"], "did you mean 'finetune.lr'?"),
        (["sap"], "expected key=value"),
        (["--plann"], "--help shows what there is"),
        (["out=a,b"], "out=a,b: takes one value"),
        (["blind=perhaps"], "blind='perhaps': expected bool"),
        (["pretrain.max_steps=1e-3"], "expected int"),
        (["pretrain.epochs=1e400"], "expected int"),
        (["seed=" + "9" * 5000], "seed=999"),
        (["finetune.warmup=" + "9" * 4000], "too large for a number"),
        (["sap.rate=" + "[" * 1500 + "]" * 1500], "sap.rate=[[["),
        (["trainer.devices=0"], "trainer.devices=0: must be auto, a number such as 2"),
        (["trainer.devices=two"], "trainer.devices=two: must be auto, a number such as 2"),
    ],
)
def test_arguments(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert sweep.main([*NAMES, *arguments]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and message in line
    assert max(map(len, line.split())) <= 200
    assert not list(tmp_path.iterdir())


def test_arguments_of_the_command(refused):
    assert "did you mean 'sap'?" in refused("compressor=sapp")
    assert "is not UTF-8" in refused("sap.rate=\udcff")


DIGITS = "9" * 5000


@pytest.mark.parametrize(
    "argument",
    [
        "pretrain.epochs=1e400",
        f"pretrain.max_steps={DIGITS}",
        f"sap.rate={DIGITS}",
        f"launch.workers={DIGITS}",
        f"seed={DIGITS[:4000]}",
        f"finetune.warmup={DIGITS[:4000]}",
        "sap.rate=0x" + "f" * 5000,
        f"compressor={DIGITS}",
        "seed=" + "[" * 3000 + "]" * 3000,
        f"seed={2**32}",
        f"data.seed={2**64}",
        f"evaluate.batch_size={2**31}",
        "sap.rate=1e30",
        "sap.dropout=.inf",
        "sap.dropout=[.nan]",
        "finetune.lr=.inf",
        "sap.rate=\udcff",
    ],
)
def test_numbers_beyond_all_bounds(monkeypatch, tmp_path, capsys, argument):
    monkeypatch.chdir(tmp_path)
    for flag in ((), ("--plan",)):
        assert sweep.main([*NAMES, argument, *flag]) == 2
        line = capsys.readouterr().err
        name, _, value = argument.partition("=")
        assert line.startswith("error: ") and line.count("\n") == 1 and name in line
        assert len(line) < 800
        assert len(value) < 200 or value[:250] not in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["compressor=matryoshka", "evaluate.scale=3,1"], "evaluate.scale=3: choose one of"),
        (["compressor=matryoshka", "evaluate.scale=1,3"], "evaluate.scale=3: choose one of"),
        (["lora.rank=2", "lora.target=[nolayer]"], "lora.target=[nolayer]: no such layers in the LLM; its"),
        (["lora.rank=0,2", "lora.target=[q_proj,nolayer]"], "lora.target=[nolayer]: no such layers"),
        (
            ["trainer.accelerator=tpu"],
            "accelerator=tpu trainer.devices=auto: this machine has no such",
        ),
        (["trainer.accelerator=cpu", "trainer.devices=[0,1]"], "trainer.devices=[0,1]: this machine has no"),
        (["trainer.accelerator=cpu", "trainer.devices=900"], "fewer than 1 pieces in 900 process(es)"),
    ],
)
@pytest.mark.parametrize("flag", [(), ("--plan",)])
def test_what_a_model_or_this_machine_does_not_allow(monkeypatch, tmp_path, capsys, arguments, message, flag):
    """Whatever the order of the cells, before any of them begins, by the sweep and its plan alike."""
    monkeypatch.chdir(tmp_path)
    assert sweep.main([*arguments, *flag]) == 2
    line = capsys.readouterr().err
    assert message in line and line.startswith("error: ") and line.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_devices_of_another_machine_are_not_looked_for(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert sweep.main([*NAMES, "trainer.accelerator=tpu", "launch=slurm", "--plan"]) == 0
    assert "evaluate" in capsys.readouterr().out


def test_unknown_asset(refused):
    line = refused("tower.source=asset:tiny/towr", command=SWEEP)
    assert "asset:tiny/towr: no such asset; there are: " in line and "asset:tiny/tower" in line


def own_data(path: Path) -> list[str]:
    return ["data.dataset=null", *(f"data.{role}={path}" for role in ("pretrain", "train", "test"))]


def test_not_llava(refused, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"text": "hello"}]))
    assert 'mine.json, sample 0: no "conversations"' in refused(*own_data(path))


def test_empty_answer(refused, tmp_path):
    records = json.loads(write_llava(tmp_path / "mine.json").read_text())
    records[1]["conversations"][3]["value"] = ""
    (tmp_path / "mine.json").write_text(json.dumps(records))
    assert "mine.json, sample 1 (id 1): message 3, from gpt, is empty" in refused(
        *own_data(tmp_path / "mine.json")
    )


def test_missing_image(refused, tmp_path):
    path = write_llava(tmp_path / "mine.json", images=True)
    (tmp_path / "1.png").unlink()
    assert f"mine.json, sample 1 (id 1): no image {tmp_path / '1.png'}" in refused(*own_data(path))


@pytest.mark.slow
def test_truncated_image(monkeypatch, tmp_path, capsys):
    """The one that only a real stage can find."""
    path = write_llava(tmp_path / "mine.json", images=True)
    os.truncate(tmp_path / "1.png", 70)
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert sweep.main([*own_data(path), "blind=false"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and line.count("\n") == 1 and tree(tmp_path) == before
    assert f"sample 1 (id 1): image {tmp_path / '1.png'} is truncated" in line


@pytest.mark.parametrize("out", ["/proc/slothkit/runs", "file/runs", "file"])
def test_directories_that_cannot_be(refused, tmp_path, out):
    (tmp_path / "file").write_text("a file, not a directory")
    line = refused(f"out={out}")
    assert out.split("/runs")[0] in line and "out=DIR" in line


def test_full_disk(tmp_path):
    """A limit on file sizes stands for a full disk."""
    code = "import sys; from experiments.sweep.__main__ import main; sys.exit(main(check=lambda _: None))"
    # -B: the limit would cut Python's own bytecode files short, too
    command = [sys.executable, "-B", "-c", code, *NAMES, "data.scale=0.002", f"out={tmp_path / 'out'}"]
    found = subprocess.run(
        command,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)),
    )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and "File too large" in found.stderr and "out=DIR" in found.stderr
    assert not list((tmp_path / "out").rglob("done.json"))
    assert not list((tmp_path / "out").rglob("*.lock"))


@pytest.mark.parametrize("arguments", [["--help"], ["compressor=sapp"], ["seed=zero"]])
def test_answers_do_not_wait_for_torch(arguments):
    """Two seconds of import would be most of the wait for a typo."""
    code = (
        "import sys; from experiments.sweep import __main__ as sweep; sweep.main(sys.argv[1:]); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=ENVIRONMENT, capture_output=True)
    assert done.returncode == 0
