"""Families whose images have patch grids of their own size and whose tower merges windows of patches at its
end: Qwen-VL, GLM-V, EXAONE."""

from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from llm_adapters.reuse.families.crops import TRIED, flatten_crops
from llm_adapters.reuse.families.family import DeepStack, ModelFamily, VideoFrames, read_tower_dim


class QwenMerger(Protocol):
    """Qwen2-VL's reduction and projector in one: a norm, windows of m x m patches, a perceptron."""

    hidden_size: int  # of a window: m * m * C
    ln_q: nn.Module
    mlp: nn.Module


class Qwen3Merger(Protocol):
    """Qwen3-VL's: the norm is before the windows or, for DeepStack, behind them."""

    hidden_size: int
    norm: nn.Module
    linear_fc1: nn.Linear
    act_fn: nn.Module
    linear_fc2: nn.Module


class GlmTower(Protocol):
    """GLM-V's tower, whose reduction is a convolution over windows before its merger."""

    downsample: nn.Conv2d
    merger: nn.Module


def group_windows(merger: QwenMerger, features: Tensor, *levels: Tensor) -> Tensor:
    """(patches, C) in windows of m x m -> (windows, m * m * C): windows are put in order after the merger."""
    return _join_windows(merger.ln_q(features), levels, merger.hidden_size // features.shape[-1])


def group_normed_windows(merger: Qwen3Merger, features: Tensor, *levels: Tensor) -> Tensor:
    """The same with Qwen3-VL's norm."""
    return _join_windows(merger.norm(features), levels, merger.hidden_size // features.shape[-1])


def group_deepstack_windows(merger: Qwen3Merger, features: Tensor) -> Tensor:
    """The same for DeepStack's features, which the norm sees as windows."""
    return _join_windows(features, (), merger.hidden_size // features.shape[-1])


def group_glm_windows(
    merger: nn.Module,  # noqa: ARG001
    reduced: Tensor,
    features: Tensor,
    *levels: Tensor,
) -> Tensor:
    """The same with the tower's normed patches (patches, C), which are `reduced` (windows, D) already."""
    return _join_windows(features, levels, len(features) // len(reduced))


def _join_windows(features: Tensor, levels: tuple[Tensor, ...], window: int) -> Tensor:
    """(windows * window, C) and levels of the same shape -> (windows, window * C')."""
    channels = torch.cat([features, *levels], -1)
    return rearrange(channels, "(n m) c -> n (m c)", m=window)


def apply_merger_mlp(merger: QwenMerger, tokens: Tensor) -> Tensor:
    """What comes after the windows in Qwen2-VL's merger."""
    return merger.mlp(tokens)


def apply_merger_layers(merger: Qwen3Merger, tokens: Tensor) -> Tensor:
    """What comes after the windows in Qwen3-VL's merger."""
    return merger.linear_fc2(merger.act_fn(merger.linear_fc1(tokens)))


def apply_deepstack_merger(merger: Qwen3Merger, tokens: Tensor) -> Tensor:
    """The same with the norm behind the windows."""
    return apply_merger_layers(merger, merger.norm(tokens))


def apply_glm_merger(tower: GlmTower, tokens: Tensor) -> Tensor:
    """The convolution on windows (n, N, m * m * C) and the merger."""
    height, width = tower.downsample.kernel_size
    windows = rearrange(tokens, "n t (i j c) -> (n t) c i j", i=height, j=width)
    reduced = tower.downsample(windows).flatten(1)  # (n * N, out)
    return tower.merger(reduced).unflatten(0, tokens.shape[:2])


def read_glm_width(tower: GlmTower) -> int:
    """m * m * C."""
    height, width = tower.downsample.kernel_size
    return tower.downsample.in_channels * height * width


def unmerge_windows(base: PreTrainedModel, entry: Tensor, arguments: Mapping[str, Any], index: int) -> Tensor:
    """(windows, m * m * C) of an image -> (1, H, W, C)."""
    merge = base.config.vision_config.spatial_merge_size
    _, grid_height, grid_width = arguments["image_grid_thw"][index]
    height = int(grid_height) // merge
    width = int(grid_width) // merge
    return rearrange(entry, "(n h w) (i j c) -> n (h i) (w j) c", h=height, w=width, i=merge, j=merge)


def read_embed_dim(base: PreTrainedModel) -> int:
    """Channels of Qwen2-VL's patch features: its `hidden_size` is the LLM's."""
    return base.config.vision_config.embed_dim


# A video is a grid of several times.
GRID_FRAMES = VideoFrames(unmerge_windows, flatten_crops)

# The tower works in an order of windows; positions follow the grids.
QWEN2_VL = ModelFamily(
    projector="visual.merger",
    width=attrgetter("mlp.0.in_features"),
    project=apply_merger_mlp,
    raw={"visual.merger": group_windows},
    maps=unmerge_windows,
    pack=flatten_crops,
    tower="visual",
    processor="grid",
    dim=read_embed_dim,
    rope=True,
    hands_options=True,
    videos=GRID_FRAMES,
    since="5.10",  # before, its processor cannot be told the counts
)
QWEN2_5_VL = replace(QWEN2_VL, dim=read_tower_dim)

# The same merger; positions are those of text.
EXAONE4_5 = replace(QWEN2_5_VL, rope=False, since=TRIED)

# DeepStack: features of earlier blocks go through mergers of their own.
QWEN3_VL = ModelFamily(
    projector="visual.merger",
    width=attrgetter("linear_fc1.in_features"),
    project=apply_merger_layers,
    raw={"visual.merger": group_normed_windows},
    maps=unmerge_windows,
    pack=flatten_crops,
    tower="visual",
    deepstack=DeepStack("visual.deepstack_merger_list", group_deepstack_windows, apply_deepstack_merger),
    processor="grid",
    rope=True,
    hands_options=True,
    videos=GRID_FRAMES,
    since=TRIED,
)

# The same without DeepStack.
QWEN3_5 = replace(QWEN3_VL, deepstack=None)

# GLM-4.1V, 4.5V and 4.6V: a convolution reduces before the merger, whose input is no patch features then.
GLM4V = ModelFamily(
    projector="visual",
    width=read_glm_width,
    project=apply_glm_merger,
    raw={"visual.merger": group_glm_windows},
    maps=unmerge_windows,
    pack=flatten_crops,
    tower="visual",
    features="visual.post_layernorm",
    processor="grid",
    rope=True,
    hands_options=True,
    mixes_beams=True,
    videos=GRID_FRAMES,
    since=TRIED,
)
