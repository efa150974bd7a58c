"""The site is built with warnings as errors; its notebooks are executed apart, side by side."""

import os
import re
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

import compressors
from ablations.site.weaving import ROOT, SITE
from compressors.setting_fields import collect_settings
from experiments.config.schema import Config

NOTEBOOKS = sorted(SITE.glob("notebooks/*.ipynb"))
PATH = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def read_words(page):
    """A page's text without its markup."""
    return re.sub("<[^>]+>", "", page.read_text())


@pytest.mark.slow
def test_site(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-D", "nb_execution_mode=off"]
    done = subprocess.run(
        [*command, str(SITE), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **PATH},
    )
    assert done.returncode == 0, done.stderr
    for source in SITE.rglob("*"):
        if source.suffix in (".md", ".rst"):
            page = tmp_path / source.relative_to(SITE).with_suffix(".html")
            assert "{{" not in read_words(page), page
    settings = read_words(tmp_path / "reference/settings.html")
    assert [path for path in collect_settings(Config) if path not in settings] == []
    reference = (tmp_path / "reference/compressors.html").read_text()
    assert [name for name in compressors.names() if f"<h2>{name}<" not in reference] == []
    assert (tmp_path / "_images/concepts.svg").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    for name, value in PATH.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "commit it without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()  # a cell that fails raises


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["reuse", "sweep"]
