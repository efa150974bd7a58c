"""VisPruner, arXiv 2412.01818 (repository Theia-4869/VisPruner): training-free.

The share `important` of the tokens are the patches to which CLS pays most. The others are what is left when
duplicates go: patches, listed by falling attention, are split into every other one; each of the first half is
compared with all of the second, and of the first those that are most like one of the second are dropped,
eight at a time; those that stay are listed by falling similarity, the second half behind them.

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64, 32 of them important

`important=1` is FasterVLM, the paper's first version. The released code fails where an odd number of patches
is listed; here the first half then has one more. In a tower without CLS (SigLIP) what a patch receives on
average stands for what CLS pays it. One changed place in the list turns who is compared with whom: features
that were rounded otherwise (cached as float16, say) keep other patches.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_share
from compressors.cues import split_patches
from compressors.grid import GridPolicy
from compressors.selection import SubsetCompressor, choose_in_float32

DROPPED_AT_ONCE = 8


@choose_in_float32
def drop_duplicates(patches: Tensor, listed: Tensor, count: int) -> Tensor:
    """Of the places `listed` (B, R) among the patches (B, N, C) those (B, count) that are least alike."""
    unit = F.normalize(patches, dim=-1)
    while listed.shape[1] > count:
        tokens = unit.gather(1, listed.unsqueeze(-1).expand(-1, -1, unit.shape[-1]))
        first, second = listed[:, ::2], listed[:, 1::2]
        similarity = (tokens[:, ::2] @ tokens[:, 1::2].mT).amax(-1)  # of each of the first half
        dropped = min(DROPPED_AT_ONCE, listed.shape[1] - count, first.shape[1])
        by_similarity = similarity.argsort(dim=-1, descending=True, stable=True)
        listed = torch.cat([first.gather(1, by_similarity[:, dropped:]), second], 1)
    return listed


@register("vispruner")
class VisPruner(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, the share `important` of them by attention, the
    others by how little they are alike."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        important: float = 0.5,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(dim, rate=rate, tokens=tokens, grid_policy=grid_policy, positions=positions)
        check_share(important=important)
        self.important = important
        self.needs_cues = ("attention",)

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        count = self.num_tokens(*features.shape[1:3])
        important_count = int(count * self.important)
        listed = cues["attention"].float().argsort(dim=-1, descending=True, stable=True)
        places = listed[:, :important_count]
        if important_count < count:
            diverse = drop_duplicates(patches, listed[:, important_count:], count - important_count)
            places = torch.cat([places, diverse], 1)
        return places.sort(-1).values
