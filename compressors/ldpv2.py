"""Lightweight downsample projector v2 (LDPv2), MobileVLM V2, arXiv 2402.03766.

Two linear layers bring the patches to the LLM's width, adaptive average pooling to the output grid, and a
depthwise 3x3 convolution beside an identity gives each token its position among its neighbours.

    H*W -> th * tw        576 -> 144 at grid = (12, 12)
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.avg_pool import average_windows
from compressors.base import Compressor, MaybeTensor, register
from compressors.checks import check_at_least, check_choice, check_grid
from compressors.grid import GridPolicy, check_pooled_grid, count_windows


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
            check_at_least(1, rate=rate)
        check_choice(GridPolicy, grid_policy=grid_policy)
        self.out_dim = llm_dim
        self.grid = check_grid(grid)
        self.rate = rate
        self.grid_policy = grid_policy
        self.mlp = nn.Sequential(nn.Linear(dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))
        self.position = nn.Conv2d(llm_dim, llm_dim, 3, padding=1, groups=llm_dim)

    def out_grid(self, height: int, width: int) -> tuple[int, int]:
        if self.rate is not None:
            return count_windows(height, width, self.rate, self.grid_policy)
        return check_pooled_grid(self.grid, height, width)

    def _pool_tokens(self, x: Tensor) -> Tensor:
        """(B, H, W, D) -> (B, D, th, tw)."""
        grid = self.out_grid(*x.shape[1:3])  # refuses what the policy refuses
        if self.rate is not None:
            pooled = average_windows(x, self.rate, self.grid_policy)
            return rearrange(pooled, "b h w d -> b d h w")
        return F.adaptive_avg_pool2d(rearrange(x, "b h w d -> b d h w"), grid)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        pooled = self._pool_tokens(self.mlp(features))
        placed = pooled + self.position(pooled)
        return rearrange(placed, "b d h w -> b (h w) d")

    def extra_repr(self) -> str:
        if self.rate is None:
            return f"grid={self.grid}"
        return f"rate={self.rate}, grid_policy={self.grid_policy}"
