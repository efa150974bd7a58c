"""Families with a Pixtral tower or Kimi's: images of their own sizes in one sequence of patches."""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_adapters.reuse.families.crops import CROPS, TRIED, flatten_crops
from llm_adapters.reuse.families.family import ModelFamily, VideoFrames, read_patch_size


class PatchMerger(Protocol):
    """A linear layer over windows of m x m patches, whose channels come before the places in a window."""

    spatial_merge_size: int
    merging_layer: nn.Linear


class MistralProjector(Protocol):
    """Mistral 3's reduction (a patch merger behind a norm) and projector in one."""

    norm: nn.Module
    patch_merger: PatchMerger
    linear_1: nn.Module
    act: nn.Module
    linear_2: nn.Module


class KimiProjector(Protocol):
    """Kimi K2.5's: a norm of patches, a perceptron on windows of m x m."""

    pre_norm: nn.Module
    in_proj: nn.Linear
    act: nn.Module
    out_proj: nn.Module


def group_patches(projector: MistralProjector, features: Tensor, *levels: Tensor) -> Tensor:
    """(patches, C) of all images -> (windows, m * m * C): the model splits them by images' counts of windows.
    A row holds patches that follow one another, which are no window."""
    window = projector.patch_merger.spatial_merge_size**2
    channels = torch.cat([projector.norm(features), *levels], -1)
    return rearrange(channels, "(n m) c -> n (m c)", m=window)


def apply_patch_merger(projector: MistralProjector, tokens: Tensor) -> Tensor:
    """What comes after the norm in the projector, on windows (n, N, m * m * C)."""
    merge = projector.patch_merger.spatial_merge_size
    windows = rearrange(tokens, "n t (i j c) -> n t (c i j)", i=merge, j=merge)
    merged = projector.patch_merger.merging_layer(windows)
    return projector.linear_2(projector.act(projector.linear_1(merged)))


def make_sized_maps(base: PreTrainedModel, entry: Tensor, arguments: Mapping[str, Any], index: int) -> Tensor:
    """The patches of an image, in rows of (..., k * C), -> (1, H, W, C)."""
    pixel_height, pixel_width = arguments["image_sizes"][index]
    patch_height, patch_width = read_patch_size(base)
    height = int(pixel_height) // patch_height
    width = int(pixel_width) // patch_width
    return entry.reshape(1, height, width, -1)


def group_kimi_patches(
    projector: KimiProjector, reduced: Tensor, features: Tensor, *levels: Tensor
) -> Tensor:
    """The same for Kimi K2.5, whose windows `reduced` (n, m * m, C) are of `features` (patches, C)."""
    channels = torch.cat([projector.pre_norm(features), *levels], -1)
    return rearrange(channels, "(n m) c -> n (m c)", m=reduced.shape[1])


def apply_kimi_layers(projector: KimiProjector, tokens: Tensor) -> Tensor:
    """What comes after the norm in its projector, on windows (n, N, m * m * C)."""
    return projector.out_proj(projector.act(projector.in_proj(tokens)))


def make_kimi_maps(
    base: PreTrainedModel,  # noqa: ARG001
    entry: Tensor,
    arguments: Mapping[str, Any],
    index: int,
) -> Tensor:
    """The same where the processor gives the patch grids."""
    _, height, width = arguments["image_grid_thw"][index]
    return entry.reshape(1, int(height), int(width), -1)


def average_times(features: Tensor, grids: Tensor) -> Tensor:
    """Patches (all frames' patches, C) of pieces of videos, whose grids (n, 3) are times, rows and columns ->
    (patches, C) with one time a piece."""
    averaged = []
    sizes = grids.tolist()
    counts = [times * height * width for times, height, width in sizes]
    for piece, (times, _, _) in zip(features.split(counts), sizes):
        of_time = piece.float().unflatten(0, (times, -1))  # float: as the model does it
        averaged.append(of_time.mean(0).to(features.dtype))
    return torch.cat(averaged)


# LLaVA with a Pixtral tower: no reduction of its own.
PIXTRAL = replace(CROPS, maps=make_sized_maps, processor="sizes", hands_options=True, since=TRIED)

# The reduction is in the projector.
MISTRAL3 = replace(
    PIXTRAL,
    width=attrgetter("patch_merger.merging_layer.in_features"),
    project=apply_patch_merger,
    raw={"multi_modal_projector": group_patches},
    hands_options=False,
)
LIGHTON_OCR = replace(
    MISTRAL3, projector="vision_projection", raw={"vision_projection": group_patches}, tower="vision_encoder"
)

# Kimi K2.5: the tower's output is windows already, of patches that are in raster order one module before.
KIMI_K25 = ModelFamily(
    projector="mm_projector",
    width=attrgetter("in_proj.in_features"),
    project=apply_kimi_layers,
    raw={"mm_projector": group_kimi_patches},
    maps=make_kimi_maps,
    pack=flatten_crops,
    features="vision_tower.final_layernorm",
    processor="grid",
    hands_options=True,
    videos=VideoFrames(make_kimi_maps, flatten_crops, mean_of_time=average_times),
    keeps_names=True,
    since=TRIED,
)
