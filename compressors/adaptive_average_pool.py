"""Adaptive average pooling, DeCo, arXiv 2405.20985; also Perception LM.

Each token is the mean of its share of the grid; the shares cover all patches, differ by at most one in either
direction, and overlap where the sizes do not divide. Where they do, it is `avg_pool`.

    H*W -> th * tw        576 -> 144 at grid = (12, 12)
"""
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.grid import GridPolicy, ResizingCompressor, unfit
from compressors.interpolate import read_weights, resize


@register("adaptive_avg_pool")
class AdaptiveAveragePool(ResizingCompressor):
    """The grid averaged to `grid`, or to as many tokens as `rate` x `rate` windows."""

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
        grid = self.out_grid(*features.shape[1:3])
        return rearrange(resize(self.filled(features), grid, "area"), "b h w c -> b (h w) c")

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        return unfit(read_weights(self.filled(features), self.out_grid(height, width), "area"), height, width)
