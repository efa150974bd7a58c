"""Reports that were cut or changed are one line, and write nothing; words of theirs stay words."""

import csv
import json
import random
import shutil
import zipfile

import numpy as np
import pytest
from made_cells import fill

from ablations import report, report_files

HOSTILE = "=1+1 <script>alert(1)</script> [x](http://a)"
pytestmark = pytest.mark.usefixtures("without_plots")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    fill(root, ["5"], seed="0,1")
    assert report.main(["table=5", f"out={root}"]) == 0
    return root / "report"


def copy_sources(made, folder):
    """What a report is made from again."""
    (folder / "outcomes").mkdir(parents=True)
    shutil.copy(made / "report.json", folder)
    shutil.copytree(made / "outcomes", folder / "outcomes", dirs_exist_ok=True)
    return folder


def refuse(folder, capsys):
    """A report of it ends with one line and writes nothing."""
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    code = report.main([f"results={folder}"])
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and len(err) < 800, err
    assert sorted(folder.rglob("*")) == before
    return err


def damage(content: bytes, kind: str, dice: random.Random) -> bytes:
    place = dice.randrange(len(content))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << dice.randrange(8))]) + content[place + 1 :]
    return content[:place] + dice.randbytes(20) + content[place:]


@pytest.mark.parametrize("name", ["outcomes/table5.npz", "report.json"])
@pytest.mark.parametrize("kind", ["cut", "flip", "insert"])
def test_damaged_files(made, tmp_path, capsys, name, kind):
    dice = random.Random(f"{name} {kind}")
    folder = copy_sources(made, tmp_path / "copy")
    whole = (folder / name).read_bytes()
    refused = 0
    for _ in range(20):
        (folder / name).write_bytes(damage(whole, kind, dice))
        # a bit of the JSON may be one of a label: then it is a report
        code = report.main([f"results={folder}", f"to={tmp_path / 'to'}"])
        err = capsys.readouterr().err
        assert (code, err.count("\n")) in ((0, 0), (2, 1)), err
        refused += code == 2
    assert refused == 20 or (kind == "flip" and name == "report.json" and refused)


def change(content, path, value):
    """A report's JSON with one value changed."""
    *parents, last = path
    for key in parents:
        content = content[key]
    content[last] = value


def test_looks_of_an_earlier_version(made, tmp_path):
    """Which wrote one number for all pairs of a claim."""
    folder = copy_sources(made, tmp_path / "copy")
    content = json.loads((folder / "report.json").read_text())
    change(content, ["tables", 0, "claims", 0, "looks"], [2, [3, 5]])
    (folder / "report.json").write_text(json.dumps(content))
    [claim] = report_files.load_report(folder).tables[0].claims
    assert claim.looks == ((2, 2), (3, 5))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["tables"], 5),
        (["tables", 0, "rows", 0, "label"], 5),
        (["tables", 0, "rows", 0, "seeds"], ["a"]),
        (["tables", 0, "rows", 0, "seeds"], [0] * 50),
        (["tables", 0, "rows", 0, "seeds"], [0]),
        (["tables", 0, "rows", 0, "efficiency"], {"visual_tokens": "many"}),
        (["tables", 0, "rows", 0, "keys"], [[1]]),
        (["tables", 0, "name"], "/../../../../tmp/x"),
        (["tables", 0, "name"], "<script>"),
        (["tables", 0, "claims"], [{"text": 1}]),
        (["tables", 0, "claims", 0, "looks"], 3),
        (["tables", 0, "claims", 0, "looks"], [True]),
        (["tables", 0, "claims", 0, "looks"], [[3, -1]]),
        (["tables", 0, "claims", 0, "looks"], [[3]]),  # of a claim with two pairs
        (["tables", 0, "chance"], []),
        (["made"], []),
        (["made"], {"cells": 3}),
        (["maps"], 10**9),
        (["maps"], "all"),
        (["format"], "9" * 3000),
    ],
)
def test_changed_values(made, tmp_path, capsys, path, value):
    folder = copy_sources(made, tmp_path / "copy")
    content = json.loads((folder / "report.json").read_text())
    change(content, path, value)
    (folder / "report.json").write_text(json.dumps(content))
    refuse(folder, capsys)


def test_arrays_of_other_shapes(made, tmp_path, capsys):
    folder = copy_sources(made, tmp_path / "copy")
    content = json.loads((folder / "report.json").read_text())
    for entry in content["tables"]:
        del entry["outcomes_sha256"]  # which would tell already
    (folder / "report.json").write_text(json.dumps(content))
    path = folder / "outcomes" / "table5.npz"
    with np.load(path) as file:
        arrays = dict(file)
    for name, array in [
        ("families", arrays["families"][:-1]),
        ("ids", arrays["ids"][None]),
        ("pictures", np.arange(len(arrays["ids"]))),
        ("pictures", np.array([{}] * len(arrays["ids"]), object)),
        ("right", arrays["right"].astype(float)),
        ("right", arrays["right"][0]),
        ("right", arrays["right"][:, :-1]),
    ]:
        np.savez_compressed(path, **{**arrays, name: array})
        refuse(folder, capsys)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("ids.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16)
    refuse(folder, capsys)


@pytest.mark.usefixtures("plots")
def test_words_of_a_report_stay_words(made, tmp_path):
    folder = copy_sources(made, tmp_path / "copy")
    content = json.loads((folder / "report.json").read_text())
    [table] = content["tables"]
    table["title"] = table["heading"] = table["rows"][0]["block"] = table["rows"][0]["label"] = HOSTILE
    table["rows"][0]["ours"] = table["sweep"] = content["made"]["command"] = HOSTILE
    table["claims"][0]["text"] = table["claims"][0]["source"] = HOSTILE
    (folder / "report.json").write_text(json.dumps(content))
    assert report.main([f"results={folder}"]) == 0
    for name in ("report.md", "report.html"):
        text = (folder / name).read_text()
        assert "&lt;script&gt;" in text.replace("</script>", "") or "&lt;script>" in text
        assert "<script" not in text
    assert "](http" not in (folder / "report.md").read_text()
    for name in ("scores.csv", "claims.csv"):
        with open(folder / name) as file:
            words = [word for row in csv.reader(file) for word in row]
        assert f"'{HOSTILE}" in words and HOSTILE not in words
