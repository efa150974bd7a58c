"""The files and commands of the how-tos, as they stand in them. Sweeps are planned, not run."""

import re
import shlex
import sys
from importlib import import_module

import pytest
from factories import byte_tokenizer, make_llm, picture

from ablations.site.weaving import ROOT, SITE
from experiments.registries import metrics

FILE = re.compile(r"`([\w.]+)`[^`]*:\n\n```\w+\n(.*?)```", re.S)
PAGES = [SITE / "concepts.md", *sorted(SITE.glob("how_to/*.md"))]
ROOM = (ROOT / "experiments/README.md").read_text()
METRIC = re.search(r"```python\n(class Contains.*?)```", ROOM, re.S)[1]
UNTRAINED = (
    "runs/cells/CELL: neither a finished cell below runs nor a folder",
    "out=runs: no such directory",
)  # what trained cells would show


def list_commands():
    commands = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.S):
            commands += [pytest.param(line, id=f"{page.stem}: {line}") for line in block.splitlines()]
    return commands


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the pages tell of, where their commands are run."""
    for page in PAGES:
        for name, text in FILE.findall(page.read_text()):
            (tmp_path / name).write_text(text)
    (tmp_path / "images").mkdir()
    for name in ("picture", "images/kitchen", "images/street"):
        picture(1).save(tmp_path / f"{name}.png")
    (tmp_path / "contains.py").write_text(METRIC)
    make_llm("llama").save_pretrained(tmp_path / "judge")
    tokenizer = byte_tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", "{{ messages[0]['content'] }}")
    tokenizer.save_pretrained(tmp_path / "judge")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    metrics.register("contains")(import_module("contains").Contains)  # what its entry point does
    yield tmp_path
    del metrics._classes["contains"], sys.modules["contains"]


@pytest.mark.parametrize("line", list_commands())
@pytest.mark.usefixtures("folder")
def test_commands(line, capsys):
    python, flag, module, *words = shlex.split(line)
    assert (python, flag) == ("python", "-m")
    if module == "experiments.sweep":
        module = "experiments.sweep.__main__"
        words = [*dict.fromkeys([*words, "--plan"])]
    code = import_module(module).main(words)
    said = capsys.readouterr().err
    assert code == 0 or any(reason in said for reason in UNTRAINED), said
