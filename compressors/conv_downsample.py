"""Strided convolutions, GOT-OCR 2.0, arXiv 2409.01704, and DeepSeek-OCR, arXiv 2510.18234.

Two 3x3 convolutions with strides and nothing between them, then (GOT) a linear layer.

    3x3 convolution C -> 2C - 3x3 convolution 2C -> D - Linear

    H*W -> ceil(H/k) * ceil(W/k)        4096 -> 256 at k = 4, strides 2 and 2, as released

A stride of 3 or more, which is ours, has a window of its own size without padding: no patch is left out.
"""

from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_at_least
from compressors.grid import GridPolicy, WindowCompressor, fit_to_strides
from compressors.layers import make_strided_convolution


def split_rate(rate: int) -> tuple[int, int]:
    """`rate` as a product of two, as equal as can be, the larger first: 4 = 2 * 2, 3 = 3 * 1, 6 = 3 * 2."""
    divisors = [n for n in range(1, int(rate**0.5) + 1) if rate % n == 0]
    smaller = divisors[-1]  # of those up to the root: the two are as equal as can be
    return rate // smaller, smaller


@register("conv_downsample")
class ConvDownsample(WindowCompressor):
    """Two convolutions whose strides multiply to `rate`.

    width         channels between them; None: twice the tower's, as in both sources
    projector     the linear layer that follows in GOT; DeepSeek-OCR has its projector elsewhere

    `floor` and `pad` crop and fill the features; `ceil` is the padded convolutions' own count, and fills for
    a stride of 3 or more.
    """

    projects = True

    def __init__(
        self,
        dim: int,
        llm_dim: int,
        *,
        rate: int = 3,
        width: int | None = None,
        projector: bool = True,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid_policy)
        if width is None:
            width = 2 * dim
        check_at_least(1, width=width)
        self.out_dim = llm_dim
        first_stride, second_stride = split_rate(rate)
        self.convolutions = nn.Sequential(
            make_strided_convolution(dim, width, first_stride),
            make_strided_convolution(width, llm_dim, second_stride),
        )
        self.projector: nn.Module = nn.Identity()
        if projector:
            self.projector = nn.Linear(llm_dim, llm_dim)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        self.out_grid(*features.shape[1:3])  # refuses what the policy refuses
        largest_stride = max(split_rate(self.rate))
        features = fit_to_strides(features, self.rate, self.grid_policy, largest_stride)
        small = self.convolutions(rearrange(features, "b h w c -> b c h w"))
        return self.projector(rearrange(small, "b d h w -> b (h w) d"))
