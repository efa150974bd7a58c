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
from compressors.constants import keep_constant
from compressors.grid import GridPolicy, ResizingCompressor


def make_cosine_matrix(size: int, device: torch.device | None = None) -> Tensor:
    """The orthonormal DCT-II as a matrix (frequencies, places)."""
    places = torch.arange(size, dtype=torch.float32, device=device)
    angles = math.pi / size * places[:, None] * (places + 0.5)
    matrix = torch.cos(angles) * math.sqrt(2 / size)
    # the constant has twice the energy of the others: halved, the rows are orthonormal
    constant = matrix[:1] / math.sqrt(2)
    return torch.cat([constant, matrix[1:]])


@keep_constant
def make_low_pass_matrix(size: int, count: int, device: torch.device) -> Tensor:
    """(count, size): the DCT of `size` places, cut to `count` frequencies, back on `count` places.

    Rows sum to 1, so that a constant stays what it is.
    """
    lowest = make_cosine_matrix(size, device)[:count]
    inverse = make_cosine_matrix(count, device).T
    return math.sqrt(count / size) * inverse @ lowest


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
        rows, columns = self.count_cells(*features.shape[1:3])
        filled = self.fill_windows(features)
        height, width = filled.shape[1:3]
        down = make_low_pass_matrix(height, rows, filled.device).to(filled.dtype)
        across = down
        if (width, columns) != (height, rows):
            across = make_low_pass_matrix(width, columns, filled.device).to(filled.dtype)
        # separable: first along the columns of patches, then along the rows
        shortened = torch.einsum("nh,bhwc->bnwc", down, filled)
        tokens = torch.einsum("mw,bnwc->bnmc", across, shortened)
        return rearrange(tokens, "b n m c -> b (n m) c")
