"""Families whose images have patch grids of their own in padded tensors: Idefics 2, Gemma 4."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_adapters.reuse.families.crops import CROPS, TRIED, apply_projector, pass_features
from llm_adapters.reuse.families.family import read_patch_size


def cut_padded_rows(
    base: PreTrainedModel, rows: Sequence[Tensor], arguments: Mapping[str, Any]
) -> list[Tensor]:
    """Rows of images, each padded to the largest of the batch, (images * H * W, C) -> of each image the
    patches of its own, (1, h, w, C)."""
    pixels = arguments["pixel_values"].to(base.dtype)  # (B, I, 3, ...): empty images fill rows
    patch_height, patch_width = read_patch_size(base)
    height = pixels.shape[-2] // patch_height
    width = pixels.shape[-1] // patch_width
    images = torch.cat(list(rows)).unflatten(0, (-1, height, width))
    mask = arguments.get("pixel_attention_mask")
    if mask is None:
        return list(images.unsqueeze(1))
    own_mask = mask[(pixels != 0).flatten(2).any(2)]  # as the model finds those that are not empty
    heights = own_mask[:, :, 0].sum(1) // patch_height
    widths = own_mask[:, 0, :].sum(1) // patch_width
    cut = []
    for image, own_height, own_width in zip(images, heights.tolist(), widths.tolist()):
        cut.append(image[None, :own_height, :own_width])
    return cut


def take_map(
    base: PreTrainedModel,  # noqa: ARG001
    entry: Tensor,
    arguments: Mapping[str, Any],  # noqa: ARG001
    index: int,  # noqa: ARG001
) -> Tensor:
    """An entry that is (1, H, W, C) already."""
    return entry


def read_no_width(connector: nn.Module) -> int:  # noqa: ARG001
    """0: what Idefics 2's own layers make is for its resampler, not for the LLM."""
    return 0


def make_positioned_maps(
    base: PreTrainedModel,  # noqa: ARG001
    entry: Tensor,
    arguments: Mapping[str, Any],
    index: int,
) -> Tensor:
    """(P, C), patches in raster order with padding behind them -> (1, H, W, C)."""
    positions = arguments["image_position_ids"][index]  # (P, 2): column, row; -1 for padding
    is_patch = (positions != -1).all(-1)
    width = int(positions[:, 0].max()) + 1
    return entry[is_patch].unflatten(0, (-1, width)).unsqueeze(0)


def apply_gemma4_projection(base: Any, tokens: Tensor) -> Tensor:
    """What comes after the pooling in Gemma 4's tower, and its projector."""
    tower = base.vision_tower
    scaled = tokens.float() * tower.pooler.root_hidden_size
    if tower.config.standardize:
        scaled = (scaled - tower.std_bias.float()) * tower.std_scale.float()
    return base.embed_vision(inputs_embeds=scaled.to(tokens.dtype))


# Idefics 2: a resampler, between the projector and the LLM, is the reduction. An entry is an image of a row.
IDEFICS2 = replace(
    CROPS,
    projector="connector",
    width=read_no_width,
    project=apply_projector,
    raw={"connector": pass_features},
    split=cut_padded_rows,
    maps=take_map,
    language_model="text_model",
    tower="vision_model",
    processor="padded",
    since=TRIED,
)

# Gemma 4: the reduction, pooling, is in the tower, before a scale and, in some sizes, a norm.
GEMMA4 = replace(
    CROPS,
    projector="",  # the scale is the tower's, the projector is the model's
    width=attrgetter("embed_vision.embedding_projection.in_features"),
    project=apply_gemma4_projection,
    raw={"vision_tower.pooler": pass_features},
    keeps_raw=True,
    maps=make_positioned_maps,
    per_layer_table="language_model.embed_tokens_per_layer",
    processor="positions",
    since=TRIED,
)
