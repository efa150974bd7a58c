"""The full-size command at small sizes: its checks hold, and fail when the model is wrong."""

import pytest
import torch

from connectors.embq import EmbQ
from experiments import full_size


@pytest.mark.parametrize(
    ("options", "visual", "trained"),
    [
        ((), 9, "compressor, projector, query_module, language_model"),
        (("hd=true",), 45, "vision_tower, compressor, projector, query_module, language_model"),
    ],
)
def test_all_that_it_checks_holds(options, visual, trained, capsys):
    assert full_size.main(["quick=true", "device=cpu", "train=both", *options]) == 0
    said = capsys.readouterr().out
    assert f"prefill of {visual + 49} tokens, {visual} visual and 9 queries: logits are finite\n" in said
    assert "WRONG" not in said and said.count("pretrain, step") == said.count("finetune, step") == 2
    last = said.split("finetune, step 2")[1].split("norms: ")[1].splitlines()[0]
    assert ", ".join(word.split()[0] for word in last.split(", ")) == trained


def test_a_query_module_that_does_nothing_is_found(monkeypatch, capsys):
    monkeypatch.setattr(EmbQ, "forward", lambda _, hidden, *__: hidden)
    assert full_size.main(["quick=true", "device=cpu"]) == 1
    assert "of the query tokens alone   <- WRONG" in capsys.readouterr().out


def test_weights_that_nothing_initialises_are_found(monkeypatch, capsys):
    monkeypatch.setattr(EmbQ, "reset_parameters", lambda _: None)
    assert full_size.main(["quick=true", "device=cpu"]) == 1
    assert "logits are finite   <- WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--hd", "--hd: settings are spelled KEY=VALUE; write hd=true"),
        ("--train=both", "--train=both: settings are spelled KEY=VALUE; write train=both"),
        ("train=all", "train=all: must be one of null, both, none, pretrain, finetune"),
    ],
)
def test_bad_input_is_one_line(argument, message, capsys):
    assert full_size.main([argument]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_the_sizes_are_the_papers():
    with full_size.open_preset_config(hd=False, quick=False) as config, torch.device("meta"):
        model, size = full_size.build.build_skeleton(config)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert counts["compressor"] == 1_329_409 and counts["query_module"] == 8_084_416 + 23_040
    assert counts["language_model"] == 2_779_683_840
    assert (size, model.num_image_tokens(), model.num_queries) == (384, 81, 9)
