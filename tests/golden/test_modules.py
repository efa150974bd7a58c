"""Parity with the original implementations on their weights, inputs and outputs.

Sizes are in the metadata of each file of vectors; GOLDEN_MODULES names another folder of them.
"""
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors import safe_open
from torch import Tensor, nn

import compressors

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
    matrices where ours has them.
    """
    own, state = module.state_dict(), {}
    for key, tensor in weights.items():
        prefix = max((p for p in names if key.startswith(p)), key=len)
        target = names[prefix] + key.removeprefix(prefix)
        state[target] = tensor.reshape(own[target].shape) if tensor.shape[2:] == (1, 1) else tensor
    module.load_state_dict(state, strict=True)
    return module.eval()


def assert_parity(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= TOLERANCE


def grid_of(vectors: Golden) -> Tensor:
    """The input patches (B, N, C) on their grid (B, H, W, C)."""
    return vectors.inputs["features"].unflatten(1, vectors.config["grid"])


SAP = {"mlp.": "scorer."}
LDP = {f"model.mlp.{i}.": f"mlp.{i - 1}." for i in (1, 3)} | {
    f"model.mb_block.{i}.block.{theirs}.": f"blocks.{i - 1}.{ours}."
    for i in (1, 2)
    for theirs, ours in {
        "0.0": "depthwise", "0.1": "depthwise_norm", "1.fc1": "gate.reduce", "1.fc2": "gate.expand",
        "2.0": "pointwise", "2.1": "pointwise_norm",
    }.items()
}
LDPV2 = {"mlp.mlp.": "mlp.", "peg.peg.0.": "position."}

COMPRESSORS = {  # file: (our name, knobs from the file's sizes, key prefixes)
    "sap": ("sap", lambda c: {"rate": c["rate"]}, SAP),
    "sap_ragged": ("sap", lambda c: {"rate": c["rate"], "grid_policy": "ceil"}, SAP),
    "ldp": ("ldp", lambda _: {"grid_policy": "ceil"}, LDP),
    "ldpv2": ("ldpv2", lambda c: {"grid": c["out_grid"]}, LDPV2),
}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_compressor(name):
    vectors = golden(name)
    ours, knobs, keys = COMPRESSORS[name]
    sizes = {"dim": vectors.config["dim"], "llm_dim": vectors.config.get("out_dim")}
    part = load(compressors.create(ours, **sizes, **knobs(vectors.config)), vectors.weights, keys)
    assert part.num_tokens(*vectors.config["grid"]) == vectors.output.shape[1]
    assert_parity(part(grid_of(vectors)), vectors.output)
