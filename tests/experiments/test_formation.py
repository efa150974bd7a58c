"""A query module watched while it trains: the same training, the scores of a sweep, the right sign."""

import json
import shlex

import pytest
import torch
from factories import picture

from experiments import formation
from experiments.inspection.formation_figure import name_curves
from experiments.inspection.query_reading import find_asked_sign, mark_patches
from experiments.picture_vqa.dataset import make_scene
from experiments.picture_vqa.scenes import PATCH_SIZE, SCENE_SIZE, Scene, Sign
from experiments.sweep import __main__ as sweep

WORD = Sign("word", "cat", "red", 40.0, 50.0, 14, 20, "font", False)
NUMBER = Sign("number", "17", "blue", 120.0, 100.0, 14, 20, "font", False)
SMALL = [
    "compressor=sap+embq",
    "data.test=tune",
    "data.scale=0.005",
    "trainer.accelerator=cpu",
    "pretrain.max_steps=2",
    "finetune.max_steps=3",
]


@pytest.mark.parametrize(
    ("question", "sign"),
    [
        ("what word is written ?", WORD),
        ("what is the first letter of the word ?", WORD),
        ("what is the last digit of the number ?", NUMBER),
        ("what does the blue sign say ?", NUMBER),
        ("what does the green sign say ?", None),
    ],
)
def test_the_sign_that_a_question_asks_about(question, sign):
    assert find_asked_sign(Scene((), (WORD, NUMBER), 0), question) == sign


def test_two_signs_of_a_kind_are_not_guessed():
    assert find_asked_sign(Scene((), (WORD, WORD), 0), "what word is written ?") is None


def test_every_reading_question_of_the_benchmark_has_its_sign():
    asked = 0
    for index in range(40):
        scene, turns = make_scene("tune", index)
        for turn in turns:
            if turn.family == "reading":
                asked += 1
                kinds = {sign.kind for sign in scene.signs}
                if len(kinds) == len(scene.signs):
                    assert find_asked_sign(scene, turn.question) is not None, turn.question
    assert asked > 20


@pytest.mark.parametrize("side", [12, 6, 24])
def test_patches_that_a_sign_touches(side):
    """By each pixel of its box."""
    left, top, right, bottom = WORD.box
    marked = torch.zeros(side, side, dtype=torch.bool)
    patch = SCENE_SIZE / side
    for x in range(int(left), int(right)):
        for y in range(int(top), int(bottom)):
            marked[int((y + 0.5) / patch), int((x + 0.5) / patch)] = True
    assert torch.equal(mark_patches(WORD, side), marked)
    assert PATCH_SIZE * 12 == SCENE_SIZE


def test_cells_without_queries_are_refused(capsys, tmp_path):
    assert formation.main(["compressor=sap", f"out={tmp_path / 'runs'}", f"to={tmp_path / 'f.json'}"]) == 2
    assert "compressor=sap: has no query module to watch; add +embq" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["image.tiles=2"], "attention is watched on cached features of one crop"),
        (["tower.cache=false"], "attention is watched on cached features of one crop"),
        (["data.test=mine.jsonl"], "mine.jsonl: has no scenes, so nobody knows where a sign is"),
        (["sap.rate=5"], "rate=5 does not divide the 12x12 patch grid"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_work(capsys, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    picture().save(tmp_path / "a.png")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "a fox"}]
    lines = [json.dumps({"id": str(n), "image": "a.png", "conversations": turns}) for n in range(2)]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    assert formation.main(["compressor=sap+embq", *settings, "out=runs", "to=f.json"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "mine.jsonl"]


def test_a_file_of_something_else_is_kept(capsys, tmp_path):
    (tmp_path / "f.json").write_text("[]")
    assert (
        formation.main(["compressor=sap+embq", f"out={tmp_path / 'runs'}", f"to={tmp_path / 'f.json'}"]) == 2
    )
    assert "is another file; name a new one" in capsys.readouterr().err
    assert (tmp_path / "f.json").read_text() == "[]"


def test_cells_of_several_commands_are_told_apart_by_their_settings():
    cell = {"cell": "sap+embq seed=3", "hidden_steps": 0}
    command = "python -m experiments.formation compressor=sap+embq seed=3"
    curves = [
        {**cell, "command": command},
        {**cell, "command": f"{command} data.scale=3 pretrain.max_steps=3000 out=runs"},
        {**cell, "command": f"{command} finetune.epochs=6"},
        {**cell, "command": f"{command} finetune.epochs=6", "hidden_steps": 100},
    ]
    assert name_curves(curves) == [
        "sap+embq seed=3",
        "sap+embq seed=3 data.scale=3 pretrain.max_steps=3000",
        "sap+embq seed=3 finetune.epochs=6",
        "sap+embq seed=3, visual tokens hidden for 100 steps",
    ]


@pytest.mark.slow
def test_watching_changes_nothing_and_scores_as_a_sweep_does(tmp_path):
    out, file = f"out={tmp_path / 'my runs'}", tmp_path / "f.json"
    assert formation.main([*SMALL, out, f"to={file}", "points=2"]) == 0
    [curve] = json.loads(file.read_text())["curves"].values()
    assert out in shlex.split(curve["command"])  # it can be typed again
    assert [point["step"] for point in curve["points"]] == [0, 2, 3]
    [shares] = curve["points"][-1]["attention"].values()
    assert len(shares) == 4 and all(0 < share < 1 for share in shares)
    assert file.with_suffix(".svg").read_text().startswith("<?xml")

    assert sweep.main([*SMALL, out, "blind=false", "evaluate.blank_queries=false,true"]) == 0
    scores = {}
    for path in (tmp_path / "my runs" / "cells").iterdir():
        overall = json.loads((path / "metrics.json").read_text())["overall"]
        scores["blank_queries=true" in path.name] = round(overall, 4)
    last = curve["points"][-1]
    assert scores == {False: last["scores"]["overall"], True: last["blanked"]["overall"]}

    changed = json.loads(file.read_text())
    assert formation.main([*SMALL, out, f"to={file}", "points=2"]) == 0  # nothing is trained again
    assert json.loads(file.read_text())["curves"] == changed["curves"]
