"""Grids that a window does not divide: one policy word for every compressor.

    error   refuse (the default)
    floor   drop the ragged border
    ceil    keep the border; the last windows are smaller
    pad     fill the border with zeros, which count as patches
"""
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import Compressor
from compressors.checks import at_least, one_of
from compressors.errors import UsageError

GridPolicy = Literal["error", "floor", "ceil", "pad"]


def windows(height: int, width: int, rate: int, policy: GridPolicy) -> tuple[int, int]:
    """How many `rate` x `rate` windows a (height, width) grid has under `policy`."""
    at_least(1, rate=rate, height=height, width=width)
    if policy == "error" and (height % rate or width % rate):
        raise UsageError(
            f"rate={rate} does not divide the {height}x{width} patch grid; choose another rate or "
            "grid_policy=floor|ceil|pad"
        )
    if policy == "floor":
        if min(height, width) < rate:
            raise UsageError(
                f"rate={rate} leaves no token of the {height}x{width} patch grid with grid_policy=floor; "
                "choose a smaller rate or grid_policy=ceil|pad"
            )
        return height // rate, width // rate
    return -(-height // rate), -(-width // rate)


def fit(features: Tensor, rate: int, policy: GridPolicy) -> tuple[Tensor, Tensor | None]:
    """(B, H, W, C) cropped or zero-filled to whole windows; for `ceil` a mask (H', W') of real patches."""
    height, width = features.shape[1:3]
    rows, columns = (n * rate for n in windows(height, width, rate, policy))
    if (rows, columns) == (height, width):
        return features, None
    if policy == "floor":
        return features[:, :rows, :columns], None
    features = F.pad(features, (0, 0, 0, columns - width, 0, rows - height))
    if policy == "pad":
        return features, None
    real = torch.zeros(rows, columns, dtype=torch.bool, device=features.device)
    real[:height, :width] = True
    return features, real


def unfit(weights: Tensor, height: int, width: int) -> Tensor:
    """Weights (B, H', W') over a fitted grid as weights (B, H, W) over the patches, each image's sum 1."""
    rows, columns = weights.shape[1:]
    weights = F.pad(weights, (0, width - columns, 0, height - rows))  # a negative width crops
    return weights / weights.sum((1, 2), keepdim=True)


class WindowCompressor(Compressor):
    """Base of the compressors whose tokens are `rate` x `rate` windows, row-major."""

    def __init__(self, rate: int, grid_policy: GridPolicy):
        super().__init__()
        at_least(1, rate=rate)
        one_of(GridPolicy, grid_policy=grid_policy)
        self.rate, self.grid_policy = rate, grid_policy

    def out_grid(self, height: int, width: int) -> tuple[int, int] | None:
        return windows(height, width, self.rate, self.grid_policy)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, grid_policy={self.grid_policy}"
