"""Evenly spaced patches: of each k x k window the patch nearest to its centre, a control for selections.

    H*W -> (H/k) * (W/k)        729 -> 81 at k = 3

Where a window has no middle patch (even k) the upper left one of the middle four is taken.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.grid import GridPolicy, WindowCompressor


def centres(size: int, count: int, rate: int, policy: GridPolicy) -> list[int]:
    """Along one axis of `size` patches, the real patch nearest to the centre of each of `count` windows."""
    starts = [rate * i for i in range(count)]
    lengths = [min(rate, size - start) if policy == "ceil" else rate for start in starts]
    return [min(start + (length - 1) // 2, size - 1) for start, length in zip(starts, lengths)]


@register("uniform")
class UniformSubset(WindowCompressor):
    """The centre patch of every `rate` x `rate` window."""

    def __init__(self, dim: int, *, rate: int = 3, grid_policy: GridPolicy = "error"):
        super().__init__(rate, grid_policy)
        self.out_dim = dim

    def _axes(self, features: Tensor) -> tuple[Tensor, Tensor]:
        sizes = features.shape[1:3]
        counts = self.out_grid(*sizes)
        kept = (centres(n, count, self.rate, self.grid_policy) for n, count in zip(sizes, counts))
        rows, columns = (torch.tensor(axis, device=features.device) for axis in kept)
        return rows, columns

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        rows, columns = self._axes(features)
        return rearrange(features[:, rows[:, None], columns], "b h w c -> b (h w) c")

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        rows, columns = (F.one_hot(axis, n).sum(0) for axis, n in zip(self._axes(features), (height, width)))
        weights = (rows[:, None] * columns).float()
        return (weights / weights.sum()).expand(len(features), -1, -1)
