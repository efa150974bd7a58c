"""Average pooling: the mean of every k x k window, the baseline that learned poolings have to beat.

    H*W -> (H/k) * (W/k)        729 -> 81 at k = 3

On a ragged grid `ceil` averages the patches that are there (`F.avg_pool2d` with `ceil_mode=True,
count_include_pad=False`), so it has SAP's token count; the released FlashSloth code floors here, ceils there.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.grid import GridPolicy, WindowCompressor, fit_to_windows, weigh_patches
from compressors.sap import softmax_in_windows


def average_windows(features: Tensor, rate: int, policy: GridPolicy) -> Tensor:
    """Mean of (B, H, W, C) over `rate` x `rate` windows -> (B, h, w, C)."""
    # `ceil` leaves the border to avg_pool2d, which divides by the patches that are there
    if policy != "ceil":
        features, _ = fit_to_windows(features, rate, policy)
    channels_first = rearrange(features, "b h w c -> b c h w")  # a view, channels last
    pooled = F.avg_pool2d(channels_first, rate, ceil_mode=policy == "ceil", count_include_pad=False)
    return rearrange(pooled, "b c h w -> b h w c")


@register("avg_pool")
class AveragePool(WindowCompressor):
    """Mean of every `rate` x `rate` window."""

    def __init__(self, dim: int, *, rate: int = 3, grid_policy: GridPolicy = "error"):
        super().__init__(rate, grid_policy)
        self.out_dim = dim

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        pooled = average_windows(features, self.rate, self.grid_policy)
        return rearrange(pooled, "b h w c -> b (h w) c")

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        # equal logits: a softmax of them is the mean of the patches that are there
        logits = torch.zeros(*features.shape[:3], 1, device=features.device)
        logits, real = fit_to_windows(logits, self.rate, self.grid_policy)
        weights = softmax_in_windows(logits.squeeze(-1), self.rate, real)
        return weigh_patches(weights, height, width)
