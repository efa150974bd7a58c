"""The project itself: its floors, its style, and that the README says what is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import compressors
from compressors.base import registry

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# the pages of the house; those below results are written by commands
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
for floor in ("compressors", "connectors", "llm_adapters", "experiments", "ablations", "tests"):
    PAGES += [page for page in (ROOT / floor).glob("**/*.md") if "results" not in page.parts]


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def beside_python(tool: str) -> str:
    return str(Path(sys.executable).parent / tool)


def test_folders_import_only_from_the_floors_below():
    assert "0 broken" in run(beside_python("lint-imports"), "--no-cache")


def test_style():
    run(beside_python("ruff"), "format", "--check", "--no-cache", ".")
    run(beside_python("ruff"), "check", "--no-cache", ".")


@pytest.mark.slow
def test_types(tmp_path):
    run(beside_python("mypy"), "--cache-dir", str(tmp_path))


def test_two_commands_do_everything():
    commands = [line for line in README.splitlines() if "-m venv" in line]
    assert len(commands) == 2
    assert "experiments.sweep" in commands[0] and commands[1].endswith("-m pytest -n auto")
    script = (ROOT / ".ci/run").read_text()
    assert "-m venv' README.md | sed -n 2p" in script and "pytest" not in script


def test_the_compressor_of_the_readme_works():
    code = re.search(r"```python\n(from einops.*?)```", README, re.S).group(1)
    names = {}
    exec(code, names)
    try:
        pool = compressors.create("max_pool", dim=8, rate=2)
        assert pool(torch.rand(2, 6, 4, 8)).shape == (2, pool.num_tokens(6, 4), pool.out_dim)
    finally:
        del registry._classes["max_pool"]


def test_links_of_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
