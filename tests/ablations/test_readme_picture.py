"""The command's grammar; the picture itself is drawn from a trained cell, which is in no repository."""

import json
import subprocess
import sys

import pytest

from ablations import readme_picture


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cell"], "to= is missing: PNG file to write"),
        (
            ["to=x.png"],
            "expected python -m ablations.readme_picture CELL to=PICTURE.png [scene=0], found nothing",
        ),
        (["cell", "x.png"], "found 2 words (cell, x.png)"),
        (["cell", "to=x.png", "scene=-1"], "scene=-1: must be at least 0"),
        (["cell", "to=x.png", "--scene", "3"], "--scene: settings are spelled KEY=VALUE; write scene=3"),
        (["cell", "to=x.png"], "cell/stages.json"),
    ],
)
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert readme_picture.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_scenes_that_are_not_there(tmp_path, capsys):
    cell = tmp_path / "cells" / "sap+embq"
    cell.mkdir(parents=True)
    (cell / "stages.json").write_text(json.dumps(["data/abc", "features/def"]))
    assert readme_picture.main([str(cell), "to=x.png"]) == 2
    assert "its embedded test data are not below" in capsys.readouterr().err
    data = tmp_path / "data" / "abc" / "picture_vqa"
    data.mkdir(parents=True)
    (data / "test.json").write_text(json.dumps([{"id": "0", "image": "0.png"}]))
    assert readme_picture.main([str(cell), "to=x.png", "scene=1"]) == 2
    assert "scene=1: " in capsys.readouterr().err


def test_help_is_quick():
    code = (
        "import sys; from ablations import readme_picture; readme_picture.main(['--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'matplotlib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "to=..." in done.stdout
