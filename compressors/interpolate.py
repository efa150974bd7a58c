"""Resizing of the feature grid, as LLaVA-OneVision does for video, arXiv 2408.03326.

    H*W -> ceil(H/s) * ceil(W/s)        729 -> 196 at s = 2, bilinear, as released (`grid_policy=ceil`)

Bilinear resizing reads the four patches nearest to a token's place and no others: at an odd rate its tokens
are the middle patches of `uniform`. `area` reads all: the mean of the patches in a token's share of the grid.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.checks import check_choice
from compressors.grid import GridPolicy, ResizingCompressor, weigh_patches

ResizeMode = Literal["bilinear", "area"]
ONE_AXIS = {"bilinear": "linear", "area": "area"}


def resize_grid(features: Tensor, grid: tuple[int, int], mode: ResizeMode) -> Tensor:
    """(B, H, W, C) -> (B, h, w, C)."""
    resized = F.interpolate(rearrange(features, "b h w c -> b c h w"), grid, mode=mode)
    return rearrange(resized, "b c h w -> b h w c")


def read_weights(features: Tensor, grid: tuple[int, int], mode: ResizeMode) -> Tensor:
    """How much of each patch the mean of the tokens has: (B, H, W), each image's sum 1."""
    shares = []  # of each place on an axis; resizing is separable
    for size, count in zip(features.shape[1:3], grid):
        one_hot = torch.eye(size, device=features.device).unsqueeze(0)
        resized = F.interpolate(one_hot, count, mode=ONE_AXIS[mode])[0]  # (size, count)
        shares.append(resized.mean(-1))
    down, across = shares
    weights = down[:, None] * across
    return weights.expand(len(features), -1, -1)


@register("interpolate")
class Interpolate(ResizingCompressor):
    """The grid resized to `grid`, or by `rate`."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        grid: tuple[int, int] | None = None,
        mode: ResizeMode = "bilinear",
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid, grid_policy)
        check_choice(ResizeMode, mode=mode)
        self.out_dim = dim
        self.mode = mode

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        grid = self.count_cells(*features.shape[1:3])
        resized = resize_grid(self.fill_windows(features), grid, self.mode)
        return rearrange(resized, "b h w c -> b (h w) c")

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        grid = self.count_cells(height, width)
        weights = read_weights(self.fill_windows(features), grid, self.mode)
        return weigh_patches(weights, height, width)
