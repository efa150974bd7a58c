"""Parity with the original implementations on their weights, inputs and outputs.

Sizes are in the metadata of each file of vectors; GOLDEN_MODULES names another folder of them.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from timm_stages import STAGE_NAMES
from torch import Tensor, nn

import compressors
from connectors.embq import registry as query_modules

FOLDER = Path(os.environ.get("GOLDEN_MODULES", Path(__file__).parent / "modules"))
TOLERANCE = 2e-5


@dataclass
class Golden:
    """One file of vectors: sizes, the original's weights by their original keys, inputs by name, output."""

    config: dict
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    output: Tensor


def golden(name: str) -> Golden:
    """Read `NAME.safetensors`."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    groups = {"weight": {}, "input": {}}
    for key, tensor in tensors.items():
        group, _, rest = key.partition("/")
        if rest:
            groups[group][rest] = tensor
    return Golden(config, groups["weight"], groups["input"], tensors["output"])


def load(module: nn.Module, weights: dict[str, Tensor], names: dict[str, str]) -> nn.Module:
    """Original weights into ours, in eval mode; every weight on either side must be used.

    `names` maps prefixes of original keys to ours, the longest match counts. Pointwise convolutions become
    matrices where ours has them, a table of positions gets its grid.
    """
    own, state = module.state_dict(), {}
    for key, tensor in weights.items():
        prefix = max((p for p in names if key.startswith(p)), key=len)
        target = names[prefix] + key.removeprefix(prefix)
        same_numbers = tensor.shape[2:] == (1, 1) or key == "pos_emb"
        state[target] = tensor.reshape(own[target].shape) if same_numbers else tensor
    module.load_state_dict(state, strict=True)
    return module.eval()


def assert_parity(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= TOLERANCE


def unpacked(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch's packed `in_proj` of an attention as three projections."""
    found = {}
    for key, tensor in weights.items():
        prefix, packed, kind = key.partition("in_proj_")
        parts = zip(("query", "key", "value"), tensor.chunk(3)) if packed else ()
        found |= {f"{prefix}{part}.{kind}": value for part, value in parts} or {key: tensor}
    return found


def grid_of(vectors: Golden) -> Tensor:
    """The input patches (B, N, C) on their grid (B, H, W, C); levels of the tower follow in the channels."""
    inputs = [vectors.inputs[name] for name in ("features", "multi_level_features") if name in vectors.inputs]
    return torch.cat(inputs, -1).unflatten(1, vectors.config["grid"])


SAP = {"mlp.": "scorer."}
LDP = {f"model.mlp.{i}.": f"mlp.{i - 1}." for i in (1, 3)} | {
    f"model.mb_block.{i}.block.{theirs}.": f"blocks.{i - 1}.{ours}."
    for i in (1, 2)
    for theirs, ours in {
        "0.0": "depthwise",
        "0.1": "depthwise_norm",
        "1.fc1": "gate.reduce",
        "1.fc2": "gate.expand",
        "2.0": "pointwise",
        "2.1": "pointwise_norm",
    }.items()
}
LDPV2 = {"mlp.mlp.": "mlp.", "peg.peg.0.": "position."}
C_ABSTRACTOR = {"pos_emb": "positions.table", "readout.": "mlp."} | {
    f"net.{i}.b{block}.{theirs}.": f"{stage}.{block - 1}.{ours}."
    for i, stage in ((0, "before"), (2, "after"))
    for block in (1, 2)
    for theirs, ours in STAGE_NAMES.items()
}
TOKEN_PACKER = {
    "q_proj_1.": "query.",
    "k_proj_1.": "key.",
    "v_proj_1.": "value.",
    "ln_q_1.": "query_norm.",
    "ln_k_1.": "key_norm.",
    "ln_v_1.": "value_norm.",
    "mlp.": "mlp.",
    "clip_attn.": "attend.",
    "clip_attn.out_proj.": "attend.out.",
}

COMPRESSORS = {  # file: (our name, knobs from the file's sizes, key prefixes)
    "sap": ("sap", lambda c: {"rate": c["rate"]}, SAP),
    "sap_ragged": ("sap", lambda c: {"rate": c["rate"], "grid_policy": "ceil"}, SAP),
    "ldp": ("ldp", lambda _: {"grid_policy": "ceil"}, LDP),
    "ldpv2": ("ldpv2", lambda c: {"grid": c["out_grid"]}, LDPV2),
    "c_abstractor": (
        "c_abstractor",
        lambda c: {
            "grid": c["out_grid"],
            "width": c["hidden_dim"],
            "num_layers": c["depth"],
            "positions": c["grid"],
            "mlp_layers": c["mlp_depth"],
        },
        C_ABSTRACTOR,
    ),
    "token_packer": (
        "token_packer",
        lambda c: {
            "rate": c["rate"],
            "heads": c["heads"],
            "levels": list(range(1, c["levels"] + 1)),
        },
        TOKEN_PACKER,
    ),
}


QUECC = {
    "text_projection.": "text.",
    "q_proj.": "query.",
    "k_proj.": "key.",
    "v_proj.": "value.",
    "q_downsample.": "downsample.",
    "clip_attn.": "attend.",
    "clip_attn.out_proj.": "attend.out.",
}


def test_quecc():
    """The released module is given one vector of a question: a question of one word here."""
    vectors = golden("quecc")
    config = vectors.config
    levels = list(range(1, config["levels"] + 1))
    part = compressors.create(
        "quecc",
        dim=config["dim"],
        llm_dim=config["text_dim"],
        rate=config["rate"],
        heads=config["heads"],
        levels=levels,
    )
    part = load(part, unpacked(vectors.weights), QUECC)
    features, text = grid_of(vectors), vectors.inputs["text"]
    assert_parity(part(features, text), vectors.output)
    # a longer question is the mean of its words; what the mask hides is none of them
    words = torch.cat([text - 1, text + 1, torch.full_like(text, torch.nan)], 1)
    mask = torch.tensor([[True, True, False]]).expand(2, -1)
    assert_parity(part(features, words, mask), vectors.output)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressor(name):
    vectors = golden(name)
    ours, knobs, keys = COMPRESSORS[name]
    sizes = {"dim": vectors.config["dim"], "llm_dim": vectors.config.get("out_dim")}
    part = load(compressors.create(ours, **sizes, **knobs(vectors.config)), unpacked(vectors.weights), keys)
    assert part.num_tokens(*vectors.config["grid"]) == vectors.output.shape[1]
    assert_parity(part(grid_of(vectors)), vectors.output)


EMBQ = {
    "down_projector_learnable_text.": "blocks.0.down_text.",
    "down_projector_image.": "blocks.0.down_image.",
    "up_projector.": "blocks.0.up.",
    "layers.": "blocks.0.layers.",
}


@pytest.mark.parametrize("name", ["embq_1layer", "embq_2layer"])
def test_embq(name):
    """The original takes queries and question apart; ours reads both off one sequence, queries last."""
    vectors = golden(name)
    sizes, text = vectors.config, vectors.inputs["text"]
    knobs = {knob: sizes[knob] for knob in ("dim", "num_queries", "num_layers")}
    module = query_modules.create(
        "embq",
        llm_dim=sizes["llm_dim"],
        vision_dim=sizes["vision_dim"],
        llm_heads=sizes["heads"],
        llm_layers=1,
        at=1,
        released=True,
        **knobs,
    )
    load(module, {**vectors.weights, "tokens": module.tokens.detach()}, {**EMBQ, "tokens": "tokens"})
    hidden = torch.cat([text, vectors.inputs["queries"]], 1)
    index = torch.arange(text.shape[1], hidden.shape[1]).expand(len(hidden), -1)  # (B, Q)
    question = torch.zeros(*index.shape, hidden.shape[1], dtype=torch.bool)
    question[..., : text.shape[1]] = vectors.inputs["text_mask"].bool().unsqueeze(1)
    seen = torch.ones(*index.shape, vectors.inputs["features"].shape[1], dtype=torch.bool)
    out = module(hidden, index, question, vectors.inputs["features"], seen)
    assert_parity(out[:, text.shape[1] :], vectors.output)
    assert torch.equal(out[:, : text.shape[1]], text)
