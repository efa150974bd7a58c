"""The contract of compressors, tried on a compressor of the user's own before a stage begins."""

from typing import Any

import torch

import compressors
from compressors.errors import UsageError
from compressors.registry import naming_part
from experiments.config.schema import Config
from experiments.config.signature_cache import PACKAGES
from llm_adapters.adapter import llm_sizes
from llm_adapters.modeling import FlashSlothForConditionalGeneration

IMAGES, WORDS = 2, 4  # of what it is tried on


def check_own_compressor(config: Config, model: FlashSlothForConditionalGeneration, size: int) -> None:
    """UsageError where a compressor from outside this project does not keep the contract on the cell's patch
    grid. `model`: the cell's, on any device; `size`: pixels of an image's side. Its weights are random."""
    name = config.evaluated_compressor
    part_class = type(model.compressor)
    if part_class.__module__.partition(".")[0] in PACKAGES:
        return  # tests/compressors/test_contract.py does more
    tower = model.vision_tower
    llm_dim = llm_sizes(model.config)["llm_dim"]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        part = compressors.create(name, dim=tower.dim, llm_dim=llm_dim, **config.knobs(name))
        side = size // part.image_rate
        height, width = tower.grid(side, side)
        channels = tower.count_channels(part.needs_levels, part.needs_cues)
        if part.needs_projected:
            channels += llm_dim
        features = torch.randn(IMAGES, height, width, channels)
        inputs: list[Any] = [features]
        if part.reads_question:
            width = llm_dim
            if part.needs_tower_text:
                assert tower.text_encoder is not None  # `build_skeleton` has given it one
                width = tower.text_encoder.dim
            inputs += [torch.randn(IMAGES, WORDS, width), torch.ones(IMAGES, WORDS, dtype=torch.bool)]
        with naming_part("compressor", name, part_class):
            count = part.num_tokens(height, width)
            tokens = part(*inputs)
            present = part.present(*inputs)
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"compressor '{name}': num_tokens({height}, {width}) is {count}: must be 1 or more")
    expected = (IMAGES, count, part.out_dim)
    if not isinstance(tokens, torch.Tensor) or tuple(tokens.shape) != expected:
        shape = tuple(getattr(tokens, "shape", ())) or type(tokens).__name__
        raise UsageError(
            f"compressor '{name}': forward of {tuple(features.shape)} gives {shape}, expected {expected}: "
            "images, num_tokens, out_dim"
        )
    if part.varies and (not isinstance(present, torch.Tensor) or tuple(present.shape) != (IMAGES, count)):
        raise UsageError(
            f"compressor '{name}': varies, but present() gives no tensor of {(IMAGES, count)}: images, "
            "num_tokens"
        )
