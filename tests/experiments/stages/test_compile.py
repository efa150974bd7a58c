"""torch.compile of the training step: the same training, and nothing of it in what is saved."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from factories import make_llm
from small_runs import align, gradients, make_config, run, write_backbones, write_data
from torch._dynamo import lookup_backend

from compressors.errors import UsageError
from experiments.stages import train as training
from experiments.stages.training import fit
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
    found = []
    monkeypatch.setattr(torch, "compile", make_compile(found, []))
    return found


def make_compile(functions, graphs):
    """In place of torch.compile: adds to what it has compiled, and to the graphs that this came to."""
    plain, trace = torch.compile, lookup_backend("aot_eager")

    def count(graph, inputs):
        graphs.append(graph)
        return trace(graph, inputs)

    def compile(function):
        functions.append(function)
        return plain(function, backend=count)

    return compile


train_rank = training.train_rank


def train_traced(config, stage, inputs, out, world, report):
    """What each of several processes does; beside `out` it leaves how much it has compiled."""
    functions, graphs = [], []
    torch.compile = make_compile(functions, graphs)
    train_rank(config, stage, inputs, out, world, report)
    path = Path(f"{out}.compiled.{os.environ['LOCAL_RANK']}")
    path.write_text(json.dumps([len(functions), len(graphs)]))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_gradients_are_those_of_the_plain_step(folder, stage, traced):
    plain, compiled = (gradients(folder, stage, str(on), compile=on) for on in (False, True))
    assert plain.keys() == compiled.keys()
    for name, wanted in plain.items():
        torch.testing.assert_close(compiled[name], wanted, msg=name)
    assert len(traced) == LAYERS


def test_it_trains_the_same_weights(folder, traced):
    check_weights(folder, {"gradient_checkpointing": True})
    assert len(traced) == LAYERS


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_it_trains_the_same_weights_in_two_processes(folder, strategy, monkeypatch):
    monkeypatch.setattr(training, "train_rank", train_traced)
    check_weights(folder, {"devices": "2", "strategy": strategy})
    for rank in range(2):
        functions, graphs = json.loads((folder / f"True.compiled.{rank}").read_text())
        assert functions == LAYERS and graphs
        assert json.loads((folder / f"False.compiled.{rank}").read_text()) == [0, 0]


@pytest.mark.slow
def test_generated_code_has_the_gradients_of_the_plain_step(folder, monkeypatch):
    """Of one layer and rows of one length: it takes half a minute a layer and shape."""
    rows = json.loads((folder / "data.json").read_text())
    for row in rows:
        row["conversations"] = rows[0]["conversations"]
        row["image"] = rows[0]["image"]
    (folder / "data.json").write_text(json.dumps(rows))
    monkeypatch.setattr(fit, "decoder_layers", lambda model: decoder_layers(model)[:1])
    plain, compiled = (gradients(folder, "finetune", str(on), compile=on) for on in (False, True))
    assert plain.keys() == compiled.keys()
    for name, wanted in plain.items():
        torch.testing.assert_close(compiled[name], wanted, atol=1e-5, rtol=1e-3, msg=name)


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
