"""The tutorial's files and commands, as they stand in it, in a distribution of their own."""

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import compressors
from compressors.base import registry
from experiments.config import signatures

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[2]
TEXT = (Path(compressors.__file__).parent / "TUTORIAL.md").read_text()
FILES = dict(re.findall(r"`([\w.]+)`[^`]*:\n\n```\w+\n(.*?)```", TEXT, re.S))
MAINS = {"compressors": "compressors.__main__", "experiments.sweep": "experiments.sweep.__main__"}
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.S) for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files, and what `pip install -e .` would leave beside them."""
    made = tmp_path_factory.mktemp("tutorial")
    for name, text in FILES.items():
        (made / name).write_text(text)
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    info = made / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        line
        for group, points in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return made


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """The output of a command that is called in this process, where its part is installed."""
    point = EntryPoint("mean_max", "mean_max:MeanMax", registry.group)
    for owner in (registry, signatures.compressors()):
        monkeypatch.setitem(owner.entry_points, point.name, point)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")

    def run_main(start: str) -> str:
        module, *words = find_command(start)
        assert import_module(MAINS.get(module, module)).main(words) == 0
        return capsys.readouterr().out

    yield run_main
    registry._classes.pop("mean_max", None)
    sys.modules.pop("mean_max", None)


def find_command(start: str) -> list[str]:
    """The module and the words of the tutorial's one command that starts like this."""
    (command,) = (line for line in COMMANDS if line.startswith(f"python -m {start}"))
    return shlex.split(command)[2:]


def run(folder: Path, start: str) -> str:
    """The output of a command as a process; pytest's is run in the checkout."""
    words = [sys.executable, "-m", *find_command(start)]
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        words,
        cwd=ROOT if start == "pytest" else folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_files_and_its_size():
    assert list(FILES) == ["mean_max.py", "pyproject.toml", "mine.yaml"]
    body = FILES["mean_max.py"].partition("class ")[2]
    assert sum(bool(line.strip()) for line in body.splitlines()) <= 20
    assert len(COMMANDS) == 6


def test_it_is_listed(call):
    lines = call("compressors").splitlines()
    assert lines[1].split()[:7] == ["mean_max", "27x27", "->", "81", "1152", "2.7", "M"]
    assert [line.strip() for line in lines[2:]] == [
        "Mean and maximum of windows.",
        "The mean and the maximum of every `rate` x `rate` window, mixed.",
        "H*W -> (H/k) * (W/k)        729 -> 81 at k = 3",
        "rate=3",
    ]


def test_it_has_a_picture(folder, call):
    assert call("experiments.gallery") == "gallery/mean_max.png\n"
    assert "## mean_max\n\nMean and maximum of windows." in (folder / "gallery" / "README.md").read_text()


def test_it_keeps_the_contract(folder):
    assert run(folder, "pytest").count(".") > 40  # one each; none selected is an exit code of its own


def test_the_study_is_beside_it(folder, call):
    (folder / "slothkit").symlink_to(ROOT)
    said = call("ablations.report")
    assert re.search(r"^\| avg_pool +\| +5 \| 7", said, re.M)
    assert re.search(r"Missing: .*mean_max, with EmbQ \(seed 0, 1, 2, 3, 4[, \d]*\)", said)  # the study's


@pytest.mark.slow
def test_its_row_in_a_table(folder, call):
    said = run(folder, "experiments.sweep compressor=mean_max")
    assert re.search(r"^\| mean_max +\| +16 \|", said, re.M), said
    assert list((folder / "try").glob("finetune/*/model/*.safetensors"))
    plan = call("experiments.sweep table=mine.yaml")
    assert re.search(r"pretrain +│ 6 ", plan) and "with EmbQ seed=2" in plan, plan
