"""Grids that a window does not divide: one policy word for every compressor.

error   refuse (the default)
floor   drop the ragged border
ceil    keep the border; the last windows are smaller
pad     fill the border with zeros, which count as patches
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import Compressor, Positions
from compressors.checks import check_at_least, check_choice, check_grid
from compressors.errors import UsageError

ROUNDING_ERROR = 1e-9  # beyond that of a share times a number of patches, and far below one token

GridPolicy = Literal["error", "floor", "ceil", "pad"]


def count_windows(height: int, width: int, rate: int, policy: GridPolicy) -> tuple[int, int]:
    """How many `rate` x `rate` windows a (height, width) grid has under `policy`."""
    check_at_least(1, rate=rate, height=height, width=width)
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


def check_pooled_grid(grid: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """`grid`, if a (height, width) patch grid can be pooled to it."""
    rows, columns = grid
    if rows > height or columns > width:
        raise UsageError(
            f"grid=({rows}, {columns}) is larger than the {height}x{width} patch grid; "
            "choose a smaller one, or set rate"
        )
    return grid


def fit_to_windows(features: Tensor, rate: int, policy: GridPolicy) -> tuple[Tensor, Tensor | None]:
    """(B, H, W, C) cropped or zero-filled to whole windows; for `ceil` a mask (H', W') of real patches."""
    height, width = features.shape[1:3]
    window_rows, window_columns = count_windows(height, width, rate, policy)
    rows = window_rows * rate
    columns = window_columns * rate
    if (rows, columns) == (height, width):
        return features, None
    if policy == "floor":
        return features[:, :rows, :columns], None
    # F.pad counts from the last dimension: channels, then columns, then rows
    features = F.pad(features, (0, 0, 0, columns - width, 0, rows - height))
    if policy == "pad":
        return features, None
    real = torch.zeros(rows, columns, dtype=torch.bool, device=features.device)
    real[:height, :width] = True
    return features, real


def fit_to_strides(features: Tensor, rate: int, policy: GridPolicy, largest_stride: int) -> Tensor:
    """(B, H, W, C) as `layers.make_strided_convolution`s of `rate` in all take it: cropped or zero-filled to
    whole windows, but as it is for `ceil`, which is how they count, while their windows overlap."""
    if policy != "ceil":
        return fit_to_windows(features, rate, policy)[0]
    if largest_stride > 2:
        return fit_to_windows(features, rate, "pad")[0]
    return features


def split_windows(x: Tensor, rate: int) -> Tensor:
    """(B, h * rate, w * rate, C) -> windows (B * h * w, rate * rate, C)."""
    return rearrange(x, "b (h i) (w j) c -> (b h w) (i j) c", i=rate, j=rate)


def make_window_mask(real: Tensor | None, batch: int, rate: int) -> Tensor | None:
    """`fit_to_windows`'s mask as an attention mask of windows, (B * h * w, 1, 1, rate * rate)."""
    if real is None:
        return None
    per_image = real.expand(batch, -1, -1).unsqueeze(-1)  # (B, H', W', 1)
    return rearrange(split_windows(per_image, rate), "n m 1 -> n 1 1 m")


def weigh_patches(weights: Tensor, height: int, width: int) -> Tensor:
    """Weights (B, H', W') over a fitted grid as weights (B, H, W) over the patches, each image's sum 1;
    zeros where no patch has any, all of it being on the filled border."""
    rows, columns = weights.shape[1:]
    weights = F.pad(weights, (0, width - columns, 0, height - rows))  # a negative width crops
    total = weights.sum((1, 2), keepdim=True)
    # an image whose weights all lie on the border has the sum 0: it stays 0, not nan
    smallest = torch.finfo(weights.dtype).tiny
    return weights / total.clamp(min=smallest)


class WindowCompressor(Compressor):
    """Base of the compressors whose tokens are `rate` x `rate` windows, row-major."""

    def __init__(self, rate: int, grid_policy: GridPolicy):
        super().__init__()
        check_at_least(1, rate=rate)
        check_choice(GridPolicy, grid_policy=grid_policy)
        self.rate = rate
        self.grid_policy = grid_policy

    def count_windows(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of windows in a grid of patches."""
        return count_windows(height, width, self.rate, self.grid_policy)

    def out_grid(self, height: int, width: int) -> tuple[int, int] | None:
        return self.count_windows(height, width)

    def weigh_windows(self, weights: Tensor, features: Tensor) -> Tensor:
        """What a query of each window pays its patches, (B * h * w, heads, 1, rate * rate), as weights over
        all patches of the features, (B, H, W): the mean over the heads."""
        height, width = features.shape[1:3]
        rows, columns = self.count_windows(height, width)
        pattern = "(b h w) (i j) -> b (h i) (w j)"
        of_windows = weights.mean(1).squeeze(1)  # (B * h * w, rate * rate)
        fitted = rearrange(of_windows, pattern, h=rows, w=columns, i=self.rate)
        return weigh_patches(fitted, height, width)

    def extra_repr(self) -> str:
        return f"rate={self.rate}, grid_policy={self.grid_policy}"


class BudgetCompressor(WindowCompressor):
    """Base of the compressors that make as many tokens as there are windows, but not one of each; or `tokens`
    of them: a number, or a share of the patches between 0 and 1, rounded down. `positions`: those of the
    tokens in the LLM, renumbered or kept as in `keeps_positions`."""

    raster_order = True

    def __init__(
        self,
        rate: int,
        grid_policy: GridPolicy,
        tokens: int | float | None = None,
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy)
        check_choice(Positions, positions=positions)
        self.keeps_positions = positions == "keep"
        if tokens is not None:
            check_budget(tokens)
        self.tokens = tokens

    def out_grid(self, height: int, width: int) -> None:
        return None

    def num_tokens(self, height: int, width: int) -> int:
        if self.tokens is not None:
            return count_budget(self.tokens, height, width)
        rows, columns = self.count_windows(height, width)
        return rows * columns

    def extra_repr(self) -> str:
        if self.tokens is None:
            return super().extra_repr()
        return f"tokens={self.tokens}"


def check_budget(tokens: int | float) -> None:
    """UsageError for what is neither a number of tokens nor a share of the patches."""
    is_share = isinstance(tokens, float) and 0 < tokens < 1
    is_count = isinstance(tokens, int) and not isinstance(tokens, bool) and tokens >= 1
    if not is_share and not is_count:
        raise UsageError(
            f"tokens={tokens}: must be how many tokens, at least 1, or a share of the patches between 0 and 1"
        )


def count_budget(tokens: int | float, height: int, width: int) -> int:
    """How many tokens a budget makes of a (height, width) patch grid."""
    check_at_least(1, height=height, width=width)
    patches = height * width
    if isinstance(tokens, float):
        # 0.29 * 400 is a little less than 116 in floating point
        return max(1, math.floor(tokens * patches + ROUNDING_ERROR))
    if tokens > patches:
        raise UsageError(f"tokens={tokens}: the {height}x{width} patch grid has {patches} patches")
    return tokens


class ResizingCompressor(WindowCompressor):
    """Base of the compressors that can make any grid: `grid` or, if None, as many tokens as windows.

    They read every patch, so `floor` and `ceil` only round the count; `pad` fills the border with zeros.
    """

    def __init__(self, rate: int, grid: tuple[int, int] | None, grid_policy: GridPolicy):
        super().__init__(rate, grid_policy)
        self.grid = grid
        if grid is not None:
            self.grid = check_grid(grid)

    def count_cells(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the grid that is made of a grid of patches."""
        if self.grid is not None:
            return check_pooled_grid(self.grid, height, width)
        return self.count_windows(height, width)

    def out_grid(self, height: int, width: int) -> tuple[int, int] | None:
        return self.count_cells(height, width)

    def fill_windows(self, features: Tensor) -> Tensor:
        """(B, H, W, C), filled up to whole windows under `pad`."""
        if self.grid is None and self.grid_policy == "pad":
            filled, _ = fit_to_windows(features, self.rate, "pad")
            return filled
        return features

    def extra_repr(self) -> str:
        if self.grid is None:
            return super().extra_repr()
        return f"grid={self.grid}"
