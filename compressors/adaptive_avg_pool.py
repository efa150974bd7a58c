"""Adaptive average pooling, DeCo, arXiv 2405.20985; also Perception LM.

Each token is the mean of its share of the grid; the shares cover all patches, differ by at most one in either
direction, and overlap where the sizes do not divide. Where they do, it is `avg_pool`; it is `interpolate` by
area.

    H*W -> th * tw        576 -> 144 at grid = (12, 12)
"""

from compressors.base import register
from compressors.grid import GridPolicy
from compressors.interpolate import Interpolate


@register("adaptive_avg_pool")
class AdaptiveAveragePool(Interpolate):
    """The grid averaged to `grid`, or to as many tokens as `rate` x `rate` windows."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        grid: tuple[int, int] | None = None,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(dim, rate=rate, grid=grid, mode="area", grid_policy=grid_policy)
