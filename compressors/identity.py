"""No compression: every patch is a visual token, the upper bound of the ablation tables.

H*W -> H*W        729 -> 729
"""

import torch
from einops import rearrange
from torch import Tensor

from compressors.base import Compressor, MaybeTensor, register


@register("identity")
class Identity(Compressor):
    """All patches, row-major."""

    def __init__(self, dim: int):
        super().__init__()
        self.out_dim = dim

    def out_grid(self, height: int, width: int) -> tuple[int, int]:
        return height, width

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        return rearrange(features, "b h w c -> b (h w) c")

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        batch, height, width = features.shape[:3]
        return torch.arange(height * width, device=features.device).repeat(batch, 1)
