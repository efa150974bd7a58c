"""Lightweight downsample projector v2 (LDPv2), MobileVLM V2, arXiv 2402.03766.

Two linear layers bring the patches to the LLM's width, adaptive average pooling to the output grid, and a
depthwise 3x3 convolution beside an identity gives each token its position among its neighbours.

    H*W -> th * tw        576 -> 144 at grid = (12, 12)
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.avg_pool import window_mean
from compressors.base import Compressor, MaybeTensor, register
from compressors.checks import at_least, grid_size, one_of
from compressors.grid import GridPolicy, windows, within


@register("ldpv2")
class LDPv2(Compressor):
    """MobileVLM V2's LDP with an output grid of `grid` or, if `rate` is given, of `rate` x `rate` windows.

    With `rate` (and `grid_policy`) it has the window compressors' token count and can be compared with them.
    """

    projects = True

    def __init__(
        self,
        dim: int,
        llm_dim: int,
        *,
        grid: tuple[int, int] = (12, 12),
        rate: int | None = None,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__()
        if rate is not None:
            at_least(1, rate=rate)
        one_of(GridPolicy, grid_policy=grid_policy)
        self.out_dim, self.grid, self.rate, self.grid_policy = llm_dim, grid_size(grid), rate, grid_policy
        self.mlp = nn.Sequential(nn.Linear(dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))
        self.position = nn.Conv2d(llm_dim, llm_dim, 3, padding=1, groups=llm_dim)

    def out_grid(self, height: int, width: int) -> tuple[int, int]:
        if self.rate is not None:
            return windows(height, width, self.rate, self.grid_policy)
        return within(self.grid, height, width)

    def _pool(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, D, th, tw)."""
        grid = self.out_grid(*x.shape[1:3])
        if self.rate is not None:
            return rearrange(window_mean(x, self.rate, self.grid_policy), "b h w d -> b d h w")
        return F.adaptive_avg_pool2d(rearrange(x, "b h w d -> b d h w"), grid)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        pooled = self._pool(self.mlp(features))
        return rearrange(pooled + self.position(pooled), "b d h w -> b (h w) d")

    def extra_repr(self) -> str:
        if self.rate is None:
            return f"grid={self.grid}"
        return f"rate={self.rate}, grid_policy={self.grid_policy}"
