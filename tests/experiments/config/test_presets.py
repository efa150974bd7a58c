"""Presets give every compressor the same budget, so that a table compares like with like."""

import pytest
import torch

import compressors
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells

UNCOMPRESSED = {"identity", "downsample"}  # all patches of the image, and of the smaller image


def built(preset: str, name: str, dim: int, llm_dim: int) -> compressors.Compressor:
    config = make_cells(parse_settings([f"preset={preset}", f"compressor={name}"]))[0].config
    with torch.device("meta"):
        return compressors.create(name, dim=dim, llm_dim=llm_dim, **config.knobs(name))


@pytest.mark.parametrize("name", sorted(set(compressors.names()) - UNCOMPRESSED))
@pytest.mark.parametrize(("preset", "dim", "llm_dim"), [("tiny", 128, 256), ("small", 384, 576)])
def test_16_tokens_of_12x12_patches(preset, dim, llm_dim, name):
    assert built(preset, name, dim, llm_dim).num_tokens(12, 12) == 16
