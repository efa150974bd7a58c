"""Keys know the code of parts that are not ours: an edited one never shows its old row."""

import importlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import EntryPoint
from pathlib import Path

import fakes
import pytest
from fakes import names, read_log, stages

from compressors.errors import UsageError
from experiments.config import signatures
from experiments.registries import metrics
from experiments.runtime.memory import begin_request
from experiments.store.part_code import (
    CODE_KEY,
    collect_own_modules,
    find_module_file,
    refuse_edited_code,
)
from experiments.store.shipped import SHIPPED_VERSIONS

ROOT = Path(__file__).parents[3]
MINE = """
from compressors import Compressor, register
from {package}mine_layers import pool


{decorator}
class Mine(Compressor):
    def __init__(self, dim: int, *, rate: int = 3):
        super().__init__()
        self.out_dim, self.rate = dim, rate

    def out_grid(self, height, width):
        return height // self.rate, width // self.rate

    def forward(self, features, text=None, text_mask=None):
        return pool(features, self.rate)
"""
LAYERS = "def pool(features, rate):\n    return features[:, ::rate, ::rate].flatten(1, 2)\n"
ENTRY_POINTS = "[slothkit.compressors]\nmine = mine:Mine\n"
TRAINED = {"pretrain": 1, "finetune": 1, "evaluate": 1}


@pytest.mark.parametrize("registry", signatures.registries(), ids=lambda registry: registry.kind)
def test_the_list_of_what_is_shipped_is_whole(registry):
    """A part joins it when it joins the project; until then its code is in its keys."""
    assert sorted(SHIPPED_VERSIONS[registry.kind]) == registry.list_built_in()


def install_outside(folder: Path) -> list[Path]:
    """A package of the user's own, as pip would leave it; the files that make up the compressor."""
    (folder / "mine-0.1.dist-info").mkdir(parents=True)
    (folder / "mine-0.1.dist-info" / "entry_points.txt").write_text(ENTRY_POINTS)
    (folder / "mine-0.1.dist-info" / "METADATA").write_text("Name: mine\nVersion: 0.1\n")
    (folder / "mine.py").write_text(MINE.format(package="", decorator=""))
    (folder / "mine_layers.py").write_text(LAYERS)
    return [folder / "mine.py", folder / "mine_layers.py"]


def put_into_tree(folder: Path) -> list[Path]:
    """A copy of the project with a compressor of the user's own in it; the file that is edited."""
    for package in ("compressors", "connectors", "llm_adapters", "experiments", "ablations"):
        leave_out = shutil.ignore_patterns("assets", "results", "gallery", "*.pyc")
        shutil.copytree(ROOT / package, folder / package, ignore=leave_out)
    methods = folder / "compressors"
    (methods / "mine.py").write_text(MINE.format(package="compressors.", decorator='@register("mine")'))
    (methods / "mine_layers.py").write_text(LAYERS)
    listing = (methods / "__init__.py").read_text().replace("matryoshka,", "matryoshka, mine,")
    (methods / "__init__.py").write_text(listing)
    return [methods / "mine_layers.py"]


def sweep(folder: Path, *arguments: str) -> Counter:
    """A sweep with fake stages, with `folder` before everything else; the stages that it has computed."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    places = [str(folder), str(ROOT), *(place for place in sys.path if place)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "XDG_CACHE_HOME": str(folder)}
    command = [sys.executable, fakes.__file__, str(log), "0", *names(folder / "out"), "blind=false"]
    subprocess.run([*command, *arguments], env=environment, cwd=folder, check=True, capture_output=True)
    return Counter(line.split()[0] for line in read_log(log))


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [install_outside, put_into_tree])
def test_an_edited_part_is_trained_anew(tmp_path, prepare):
    files = prepare(tmp_path)
    assert sweep(tmp_path, "compressor=mine,sap")["evaluate"] == 2
    for file in files:
        file.write_text(file.read_text() + "\nRATE = 4\n")
        assert sweep(tmp_path, "compressor=mine,sap") == TRAINED  # sap's row is as it was
    if prepare is put_into_tree:
        check_plan_without_torch(tmp_path)


def check_plan_without_torch(folder: Path) -> None:
    """Of a part in the tree, once a command has made the file of signatures."""
    code = (
        "import sys; from fakes import stages;"
        "mine = stages('compressor=mine')['pretrain'].depends['compressor'];"
        "print(sorted(mine), 'torch' in sys.modules);"
        "host = stages('compressor=matryoshka', 'matryoshka.host=mine')['pretrain'].depends['compressor'];"
        "assert host['its code'] == mine['its code'], host"
    )
    places = [str(folder), str(ROOT / "tests" / "helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "XDG_CACHE_HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.stdout == "['its code', 'mine'] False\n", done.stderr


def test_what_makes_up_a_part(tmp_path, monkeypatch):
    """Relative imports, packages, cycles, imports inside functions; no library, no data, nothing is run."""
    files = {
        "own_part/__init__.py": "from own_part.method import Method\n",
        "own_part/method.py": "from . import layers\nfrom .deep.more import x as y\nimport torch, json\n",
        "own_part/layers.py": "def f():\n    import own_helper\n",
        "own_part/deep/more.py": "from ..method import Method\nraise SystemExit\n",
        "own_part/unused.py": "",
        "own_helper.py": "syntax error here",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    modules = collect_own_modules(["own_part.method"], ["own_part"], ())
    expected = ["own_helper", "own_part", "own_part.deep.more", "own_part.layers", "own_part.method"]
    assert sorted(modules) == expected
    assert not {"own_part", "own_helper"} & sys.modules.keys()
    assert find_module_file("own_part.nothing") is None and find_module_file("sys") is None


def test_a_part_that_was_edited_after_the_plan_is_refused():
    """By the worker that would train it under the key of the code before."""
    refuse_edited_code({"compressor": {"sap": {}}, "seed": 0})
    with pytest.raises(UsageError, match="compressor 'sap' was edited after this run was planned"):
        refuse_edited_code({"compressor": {"sap": {}, CODE_KEY: {"sap": "of another version"}}})


@pytest.fixture
def write_mine(tmp_path, monkeypatch):
    """Writes an outside package's compressor `mine`, with a default rate of its own."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "mine_layers.py").write_text(LAYERS)
    registry = signatures.compressors()
    point = EntryPoint("mine", "mine:Mine", "slothkit.compressors")
    for owner in (registry, registry.real):
        monkeypatch.setitem(vars(owner), "entry_points", {**owner.entry_points, "mine": point})

    def write(rate: int) -> None:
        text = MINE.format(package="", decorator="").replace("rate: int = 3", f"rate: int = {rate}")
        (tmp_path / "mine.py").write_text(text)
        begin_request()

    yield write
    registry.real._classes.pop("mine", None)
    for module in ("mine", "mine_layers"):
        sys.modules.pop(module, None)


def test_a_part_that_is_edited_and_reloaded_is_trained_anew(write_mine):
    """As in a notebook, by hand or by %autoreload; without a reload the code of before would be trained."""
    write_mine(3)
    first = stages("compressor=mine")["pretrain"]
    assert stages("compressor=mine")["pretrain"].key == first.key
    write_mine(12)
    with pytest.raises(UsageError, match="compressor 'mine' was edited .* imported its module mine; reload"):
        stages("compressor=mine")
    importlib.reload(sys.modules["mine"])
    again = stages("compressor=mine")["pretrain"]
    assert again.key != first.key and again.depends["compressor"]["mine"]["rate"] == 12


def test_a_sweep_goes_on_with_the_code_that_it_has_imported(write_mine):
    write_mine(3)
    depends = stages("compressor=mine")["pretrain"].depends
    write_mine(12)
    refuse_edited_code(depends)
    importlib.reload(sys.modules["mine"])
    with pytest.raises(UsageError, match="compressor 'mine' was edited after this run was planned"):
        refuse_edited_code(depends)


def test_a_module_that_is_edited_before_it_is_imported_is_refused(write_mine, tmp_path):
    """What a part imports inside its functions may come after the plan."""
    write_mine(3)
    late = "    def forward(self, features, text=None, text_mask=None):\n        import mine_late\n\n"
    text = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(text.replace(late.partition("\n")[0] + "\n", late))
    (tmp_path / "mine_late.py").write_text("")
    depends = stages("compressor=mine")["pretrain"].depends
    assert "mine_late" not in sys.modules
    refuse_edited_code(depends)
    (tmp_path / "mine_late.py").write_text("RATE = 4\n")
    with pytest.raises(UsageError, match="compressor 'mine' was edited after this run was planned"):
        refuse_edited_code(depends)


def test_every_metric_that_we_offer_has_a_version():
    assert sorted(SHIPPED_VERSIONS["metric"]) == sorted(
        name for name, point in metrics.entry_points.items() if point.module.startswith("experiments.")
    )
