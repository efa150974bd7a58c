"""Evenly spaced patches: of each k x k window the patch nearest to its centre, a control for selections.

    H*W -> (H/k) * (W/k)        729 -> 81 at k = 3

Where a window has no middle patch (even k) the upper left one of the middle four is taken.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_choice
from compressors.grid import GridPolicy, WindowCompressor


def find_centres(size: int, count: int, rate: int, policy: GridPolicy) -> list[int]:
    """Along one axis of `size` patches, the real patch nearest to the centre of each of `count` windows."""
    centres = []
    for start in range(0, rate * count, rate):
        length = rate
        if policy == "ceil":  # the last window ends with the grid
            length = min(rate, size - start)
        middle = start + (length - 1) // 2
        centres.append(min(middle, size - 1))  # under `pad` the middle may lie beyond the patches
    return centres


@register("uniform")
class UniformSubset(WindowCompressor):
    """The centre patch of every `rate` x `rate` window."""

    def __init__(
        self, dim: int, *, rate: int = 3, grid_policy: GridPolicy = "error", positions: Positions = "renumber"
    ):
        super().__init__(rate, grid_policy)
        check_choice(Positions, positions=positions)
        self.keeps_positions = positions == "keep"
        self.out_dim = dim

    def _locate_axes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (h,) and columns (w,) of the patches that are kept."""
        height, width = features.shape[1:3]
        window_rows, window_columns = self.count_windows(height, width)
        rows = find_centres(height, window_rows, self.rate, self.grid_policy)
        columns = find_centres(width, window_columns, self.rate, self.grid_policy)
        return torch.tensor(rows, device=features.device), torch.tensor(columns, device=features.device)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        rows, columns = self._locate_axes(features)
        kept_patches = features[:, rows[:, None], columns]
        return rearrange(kept_patches, "b h w c -> b (h w) c")

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        rows, columns = self._locate_axes(features)
        places = rows[:, None] * features.shape[2] + columns
        return places.flatten().repeat(len(features), 1)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        rows, columns = self._locate_axes(features)
        is_row = F.one_hot(rows, height).sum(0)  # (H,)
        is_column = F.one_hot(columns, width).sum(0)  # (W,)
        weights = (is_row[:, None] * is_column).float()
        return (weights / weights.sum()).expand(len(features), -1, -1)
