"""Cells whose tower has a text encoder: compressors that compare patches with the question by it, evaluated
on an uncompressed training and trained with, from cached features."""

import json

import pytest
import torch
from test_evaluated_compressor import UNCOMPRESSED
from text_towers import save_text_tower

from experiments.sweep import __main__ as sweep
from llm_adapters.saved import load_saved_model

SIZES = ["image.size=84", "data.scale=0.003", "evaluate.limit=12"]
FEW_STEPS = [f"{stage}.{name}=4" for stage in ("pretrain", "finetune") for name in ("max_steps", "epochs")]


def shorten(words):
    """The settings of a cell that trains for a moment on 6x6 patches."""
    replaced = {word.partition("=")[0] for word in (*SIZES, *FEW_STEPS)}
    kept = [word for word in words if word.partition("=")[0] not in replaced]
    return [*kept, *SIZES, *FEW_STEPS]


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_real_cells(tmp_path, capsys, kind):
    source = save_text_tower(tmp_path / "tower", kind)
    out = tmp_path / "runs"
    words = [f"out={out}", f"tower.source={source}", *shorten(UNCOMPRESSED)]
    names = "evaluate.compressor=null,cdpruner,trim"
    assert sweep.main([*words, names]) == 0, capsys.readouterr()
    assert len(list((out / "finetune").glob("*/done.json"))) == 1
    assert len(list((out / "features").glob("*/done.json"))) == 3  # of training, and of the test with the cue
    tokens = []
    for evaluation in (out / "evaluate").glob("*/metrics.json"):
        tokens.append(json.loads(evaluation.read_text())["efficiency"]["visual_tokens"])
    assert sorted(tokens) == [4, 4, 36]
    before = set((out / "evaluate").glob("*/metrics.json"))
    by_image = ["evaluate.compressor=trim", "trim.tokens=18", "trim.iqr=0.1", "trim.per_image=true"]
    assert sweep.main([*words, *by_image]) == 0, capsys.readouterr()
    (evaluation,) = set((out / "evaluate").glob("*/metrics.json")) - before
    # as many as images have on average
    assert 1 < json.loads(evaluation.read_text())["efficiency"]["visual_tokens"] < 18
    trained = [word for word in words if not word.startswith("compressor=")]
    assert sweep.main([*trained, "compressor=trim", "trim.tokens=0.25"]) == 0, capsys.readouterr()
    (cell,) = (out / "cells").glob("trim*")
    model, processor = load_saved_model(cell, torch.device("cpu"))
    assert (
        processor.image_tokens == 9
        and processor.question_tokenizer.length == model.vision_tower.text_encoder.length
    )


def test_a_tower_without_text_encoder_is_refused_before_work(tmp_path, capsys):
    for words in (["compressor=cdpruner"], ["compressor=identity", "evaluate.compressor=trim"]):
        assert sweep.main([f"out={tmp_path / 'runs'}", *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1
        assert "no text encoder of its own; give a whole CLIP or SigLIP checkpoint" in error
        assert "tower.source=asset:tiny/tower" in error and not (tmp_path / "runs").exists()
