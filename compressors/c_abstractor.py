"""C-Abstractor, Honeybee, arXiv 2312.06742.

Convolutional stages before and after adaptive average pooling mix neighbours, so that a token knows its
surroundings; an MLP brings it to the LLM's width.

    + learned positions - RegNet stage - average pool - RegNet stage - Linear - SiLU - Linear
    stage:  n times  1x1 - depthwise 3x3 - squeeze-excitation - 1x1, + input, SiLU

    H*W -> th * tw        576 -> 144 at grid = (12, 12)
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_at_least, check_grid
from compressors.grid import GridPolicy, ResizingCompressor
from compressors.positions import LearnedPositions


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means over the grid."""

    def __init__(self, width: int, squeezed: int):
        super().__init__()
        self.reduce = nn.Linear(width, squeezed)
        self.expand = nn.Linear(squeezed, width)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((1, 2), keepdim=True)  # (B, 1, 1, D)
        gate = self.expand(F.silu(self.reduce(means))).sigmoid()
        return x * gate


class Bottleneck(nn.Module):
    """RegNet's block with layer norm over the channels, as wide inside as outside, channels last."""

    def __init__(self, in_dim: int, width: int):
        super().__init__()
        self.pointwise_in = nn.Linear(in_dim, width, bias=False)
        self.pointwise_out = nn.Linear(width, width, bias=False)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.norm_in = nn.LayerNorm(width)
        self.norm_depthwise = nn.LayerNorm(width)
        self.norm_out = nn.LayerNorm(width)
        self.gate = SqueezeExcitation(width, max(1, round(in_dim / 4)))  # RegNet: a quarter of what comes in
        self.shortcut: nn.Module = nn.Identity()
        if in_dim != width:
            self.shortcut = nn.Sequential(nn.Linear(in_dim, width, bias=False), nn.LayerNorm(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm_in(self.pointwise_in(x)))
        y = self.depthwise(rearrange(y, "b h w d -> b d h w"))
        y = rearrange(y, "b d h w -> b h w d")
        y = self.gate(F.silu(self.norm_depthwise(y)))
        return F.silu(self.norm_out(self.pointwise_out(y)) + self.shortcut(x))


def make_stage(in_dim: int, width: int, depth: int) -> nn.Sequential:
    """`depth` blocks, the first of which may widen."""
    blocks = [Bottleneck(in_dim, width)]
    for _ in range(depth - 1):
        blocks.append(Bottleneck(width, width))
    return nn.Sequential(*blocks)


@register("c_abstractor")
class CAbstractor(ResizingCompressor):
    """Pooled to `grid` or, if None, to as many tokens as `rate` x `rate` windows.

    width         channels of the stages
    num_layers    blocks of each stage
    mlp_layers    linear layers of the MLP behind them
    positions     grid of the learned positions, resized to other patch grids
    """

    projects = True

    def __init__(
        self,
        dim: int,
        llm_dim: int,
        *,
        rate: int = 3,
        grid: tuple[int, int] | None = None,
        width: int = 1024,
        num_layers: int = 3,
        mlp_layers: int = 2,
        positions: tuple[int, int] = (24, 24),
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid, grid_policy)
        check_at_least(1, width=width, num_layers=num_layers, mlp_layers=mlp_layers)
        self.out_dim = llm_dim
        self.positions = LearnedPositions(check_grid(positions, "positions"), dim)
        self.before = make_stage(dim, width, num_layers)
        self.after = make_stage(width, width, num_layers)
        layers: list[nn.Module] = [nn.Linear(width, llm_dim)]
        for _ in range(mlp_layers - 1):
            layers += [nn.SiLU(), nn.Linear(llm_dim, llm_dim)]
        self.mlp = nn.Sequential(*layers)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        grid = self.count_cells(*features.shape[1:3])
        x = self.before(self.positions(self.fill_windows(features)))
        pooled = F.adaptive_avg_pool2d(rearrange(x, "b h w d -> b d h w"), grid)
        x = self.after(rearrange(pooled, "b d h w -> b h w d"))
        return self.mlp(rearrange(x, "b h w d -> b (h w) d"))
