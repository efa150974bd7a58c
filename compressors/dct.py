"""Low-pass filtering in the frequency domain, Fourier-VLM, arXiv 2508.06038.

The grid's two-dimensional cosine transform is cut to its th * tw lowest frequencies, which are transformed
back on the smaller grid: the features resized without aliasing. Nothing is learned.

    patches (H, W) --DCT--> frequencies (H, W) --cut--> (th, tw) --inverse DCT--> tokens (th, tw)

    H*W -> th * tw        576 -> 144 at rate = 2
"""

import math

import torch
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.grid import GridPolicy, ResizingCompressor


def cosines(size: int, device: torch.device | None = None) -> Tensor:
    """The orthonormal DCT-II as a matrix (frequencies, places)."""
    places = torch.arange(size, dtype=torch.float32, device=device)
    matrix = torch.cos(math.pi / size * places[:, None] * (places + 0.5)) * math.sqrt(2 / size)
    return torch.cat([matrix[:1] / math.sqrt(2), matrix[1:]])


def low_pass(size: int, count: int, device: torch.device | None = None) -> Tensor:
    """(count, size): the DCT of `size` places, cut to `count` frequencies, back on `count` places.

    Rows sum to 1, so that a constant stays what it is.
    """
    kept = cosines(size, device)[:count]
    return math.sqrt(count / size) * cosines(count, device).T @ kept


@register("dct")
class LowFrequencies(ResizingCompressor):
    """The lowest frequencies of the grid, as many as `grid` or as `rate` x `rate` windows have tokens."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        grid: tuple[int, int] | None = None,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid, grid_policy)
        self.out_dim = dim

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        grid, features = self.out_grid(*features.shape[1:3]), self.filled(features)
        down, across = (
            low_pass(size, count, features.device).to(features.dtype)
            for size, count in zip(features.shape[1:3], grid)
        )
        rows = torch.einsum("nh,bhwc->bnwc", down, features)
        return rearrange(torch.einsum("mw,bnwc->bnmc", across, rows), "b n m c -> b (n m) c")
