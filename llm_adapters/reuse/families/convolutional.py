"""Families with a convolutional tower of timm: FastVLM, Gemma 3n."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressors.errors import UsageError
from llm_adapters.reuse.families.crops import CROPS, TRIED, pass_features
from llm_adapters.reuse.families.family import PatchGrid


def apply_embedder(embedder: nn.Module, tokens: Tensor) -> Tensor:
    """Gemma 3n's projector, which embeds ids, too."""
    return embedder(inputs_embeds=tokens)


def read_stride(base: Any) -> tuple[int, int]:
    """Pixels of a place of a convolutional tower's output."""
    stride: int = base.vision_tower.timm_model.feature_info[-1]["reduction"]
    return stride, stride


def read_sequence_grid(base: PreTrainedModel) -> PatchGrid:
    """The square of as many tokens as the configuration gives an image."""
    side = math.isqrt(base.config.image_seq_length)
    return side, side


def read_soft_token_grid(base: PreTrainedModel) -> PatchGrid:
    """The same by the name that Gemma 3n has for it."""
    side = math.isqrt(base.config.vision_soft_tokens_per_image)
    return side, side


def refuse_blocks(tower: nn.Module) -> Sequence[nn.Module]:
    """UsageError: there is no list of blocks that look at the same places."""
    raise UsageError(
        f"levels: {type(tower).__name__} is convolutional, and its stages differ in width and places; choose "
        "a compressor that reads the tower's output alone"
    )


def make_stride_maps(
    base: PreTrainedModel,
    entry: Tensor,
    arguments: Mapping[str, Any],
    index: int,  # noqa: ARG001
) -> Tensor:
    """The same for a convolutional tower, which pads what is no whole place: (places, C) -> (1, H, W, C)."""
    pixel_height, _ = arguments["pixel_values"].shape[-2:]
    stride, _ = read_stride(base)
    return rearrange(entry, "(h w) c -> 1 h w c", h=math.ceil(pixel_height / stride))


def make_soft_token_maps(
    base: PreTrainedModel,
    entry: Tensor,
    arguments: Mapping[str, Any],  # noqa: ARG001
    index: int,  # noqa: ARG001
) -> Tensor:
    """The same for a tower whose output has one size whatever the image's is."""
    height, width = read_soft_token_grid(base)
    return rearrange(entry, "(h w) c -> 1 h w c", h=height, w=width)


# FastVLM: LLaVA's projector behind a convolutional tower of timm, whose stages have widths of their own.
FAST_VLM = replace(
    CROPS,
    maps=make_stride_maps,
    grid=read_sequence_grid,
    patch_size=read_stride,
    blocks=refuse_blocks,
    since=TRIED,
)

# Gemma 3n: a MobileNet of timm as well, and a projector that takes its places, scaled, or ids of images.
GEMMA3N = replace(
    FAST_VLM,
    projector="embed_vision",
    width=attrgetter("embedding_projection.in_features"),
    project=apply_embedder,
    raw={"embed_vision": pass_features},
    maps=make_soft_token_maps,
    grid=read_soft_token_grid,
    per_layer_table="language_model.embed_tokens_per_layer",
    id_embedders=("embed_vision", "embed_audio"),
)
