"""Lightweight downsample projector (LDP), MobileVLM, arXiv 2312.16886.

Two linear layers bring the patches to the LLM's width; two MobileNetV3 inverted residuals without expansion
mix neighbours, the second with a stride.

    Linear - GELU - Linear - residual(stride 1) - residual(stride k)
    residual:  depthwise 3x3 - norm - hard-swish - squeeze-excitation - pointwise - norm (+ input at stride 1)

    H*W -> ceil(H/k) * ceil(W/k)        576 -> 144 at k = 2, as released (`grid_policy=ceil` on odd grids)

A stride of 3 or more, which is ours, has a window of its own size without padding: no patch is left out.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.grid import GridPolicy, WindowCompressor, fit_to_strides
from compressors.layers import make_strided_convolution


def round_squeeze_width(width: int) -> int:
    """A quarter of `width` as a multiple of 8, at most a tenth smaller (MobileNet's rounding)."""
    quarter = width // 4
    rounded = max(8, (quarter + 4) // 8 * 8)
    if rounded < 0.9 * quarter:
        return rounded + 8
    return rounded


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the channels' means over the grid."""

    def __init__(self, width: int):
        super().__init__()
        self.reduce = nn.Linear(width, round_squeeze_width(width))
        self.expand = nn.Linear(round_squeeze_width(width), width)

    def forward(self, x: Tensor) -> Tensor:
        means = x.mean((1, 2), keepdim=True)  # (B, 1, 1, D)
        gate = F.hardsigmoid(self.expand(F.relu(self.reduce(means))))
        return x * gate


class InvertedResidual(nn.Module):
    """MobileNetV3's block at expansion 1 with layer norm over the channels, channels last: (B, H, W, D)."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.stride = stride
        self.depthwise = make_strided_convolution(width, width, stride, groups=width)
        self.depthwise_norm = nn.LayerNorm(width)
        self.gate = SqueezeExcitation(width)
        self.pointwise = nn.Linear(width, width, bias=False)
        self.pointwise_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(rearrange(x, "b h w d -> b d h w"))
        y = rearrange(y, "b d h w -> b h w d")
        y = self.gate(F.hardswish(self.depthwise_norm(y)))
        y = self.pointwise_norm(self.pointwise(y))
        if self.stride == 1:
            return x + y
        return y  # of another size than x


@register("ldp")
class LDP(WindowCompressor):
    """MobileVLM's LDP with stride `rate`.

    `floor` and `pad` crop and zero-fill the projected grid; `ceil` is the strided convolution's own count,
    and fills for a rate of 3 or more.
    """

    projects = True

    def __init__(self, dim: int, llm_dim: int, *, rate: int = 2, grid_policy: GridPolicy = "error"):
        super().__init__(rate, grid_policy)
        self.out_dim = llm_dim
        self.mlp = nn.Sequential(nn.Linear(dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))
        self.blocks = nn.Sequential(InvertedResidual(llm_dim, 1), InvertedResidual(llm_dim, rate))

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        x = self.mlp(features)
        x = fit_to_strides(x, self.rate, self.grid_policy, largest_stride=self.rate)
        return rearrange(self.blocks(x), "b h w d -> b (h w) d")
