"""torch.compile of the training step: the same training, and nothing of it in what is saved."""

import json
from functools import partial

import pytest
import torch
from factories import make_llm
from small_runs import align, gradients, make_config, run, write_backbones, write_data

from compressors.errors import UsageError
from llm_adapters.adapter import decoder_layers

# a softmax is the same whatever these are: AdamW follows the sign of rounding errors
UNSEEN = ("k_proj.bias", "scorer.3.bias")
LAYERS = len(decoder_layers(make_llm("phi")))


@pytest.fixture
def folder(tmp_path):
    write_backbones(tmp_path)
    write_data(tmp_path, 16, frozenset({3, 7}))
    return tmp_path


@pytest.fixture
def traced(monkeypatch):
    """What has been compiled; everything but the code generation, which takes most of the time."""
    found, plain = [], torch.compile

    def compile(function):
        found.append(function)
        return plain(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", compile)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_gradients_are_those_of_the_plain_step(folder, stage, traced):
    plain, compiled = (gradients(folder, stage, str(on), compile=on) for on in (False, True))
    assert plain.keys() == compiled.keys()
    for name, wanted in plain.items():
        torch.testing.assert_close(compiled[name], wanted, msg=name)
    assert len(traced) == LAYERS


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}], ids=["plain", "checkpointing"])
def test_it_trains_the_same_weights(folder, settings, traced):
    check_weights(folder, settings)
    assert len(traced) == LAYERS


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_it_trains_the_same_weights_in_two_processes(folder, strategy):
    """With generated code, which takes a minute a shape: of rows of one length."""
    rows = json.loads((folder / "data.json").read_text())
    for row in rows:
        row["conversations"] = rows[0]["conversations"]
        row["image"] = rows[0]["image"]
    (folder / "data.json").write_text(json.dumps(rows))
    check_weights(folder, {"devices": "2", "strategy": strategy})


def check_weights(folder, settings):
    train = partial(make_config, folder, **settings)
    plain, compiled = (
        run("finetune", train(compile=on), align(train(), folder), folder / str(on)) for on in (False, True)
    )
    assert plain.keys() == compiled.keys()
    for name, wanted in plain.items():
        if not name.endswith(UNSEEN):
            torch.testing.assert_close(compiled[name], wanted, atol=1e-4, rtol=1e-3, msg=name)


def test_what_the_compiler_says_is_one_line(folder, monkeypatch):
    def broken(graph, inputs):  # noqa: ARG001
        raise RuntimeError("no C++ compiler\nand so on")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    with pytest.raises(UsageError, match=r"^trainer.compile=true: .*no C\+\+ compiler.*; leave it") as found:
        run("pretrain", make_config(folder, compile=True), {}, folder / "out")
    assert "\n" not in str(found.value)
