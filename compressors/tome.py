"""Token merging (ToMe), arXiv 2210.09461, on the tower's output.

The tokens are split in two sets, every other one; each of the first finds its most similar in the second, and
the most similar pairs are merged, weighted by how many patches a token already stands for. A step merges at
most half of the tokens, so there are as many steps as the budget takes. Nothing is learned.

    H*W -> the tokens of `rate` x `rate` windows        729 -> 81 at rate = 3, by steps 365, 183, 92, 81

In the paper, tokens merge between the tower's blocks and are compared by their keys; here, behind the tower,
the features themselves are compared.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.grid import BudgetCompressor, GridPolicy
from compressors.selection import choice


def group_means(tokens: Tensor, group: Tensor, count: int) -> Tensor:
    """Mean of the tokens (B, N, C) of each group (B, N) in 0 .. count - 1 -> (B, count, C); of none 0."""
    index = group.unsqueeze(-1).expand_as(tokens)
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))  # sums of many overflow in half
    sums = torch.zeros(len(tokens), count, tokens.shape[-1], dtype=wide.dtype, device=tokens.device)
    return sums.scatter_reduce(1, index, wide, "mean", include_self=False).to(tokens.dtype)


def match(tokens: Tensor, merges: int) -> Tensor:
    """One step: which of n - merges tokens each of (B, n, C) becomes, (B, n), the order kept.

    Ties go to the pair whose tokens come first.
    """
    unit = F.normalize(tokens, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].mT  # (B, first set, second set)
    best, partner = similarity.max(-1).values, similarity.argmax(-1)
    merged = best.argsort(dim=-1, descending=True, stable=True)[:, :merges]  # of the first set
    count = tokens.shape[1]
    goes_to = torch.arange(count, device=tokens.device).repeat(len(tokens), 1)
    goes_to = goes_to.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)
    stays = goes_to == torch.arange(count, device=tokens.device)
    return (stays.cumsum(1) - 1).gather(1, goes_to)


@choice
def merge_groups(features: Tensor, count: int) -> Tensor:
    """Which of `count` tokens each patch (B, N, C) becomes part of: (B, N), tokens in raster order."""
    group = torch.arange(features.shape[1], device=features.device).repeat(len(features), 1)
    left = features.shape[1]
    while left > count:
        merges = min(left // 2, left - count)
        group = match(group_means(features, group, left), merges).gather(1, group)
        left -= merges
    return group


@register("tome")
class TokenMerging(BudgetCompressor):
    """Patches merged by similarity to one token for each `rate` x `rate` window's worth, their mean."""

    def __init__(self, dim: int, *, rate: int = 3, grid_policy: GridPolicy = "error"):
        super().__init__(rate, grid_policy)
        self.out_dim = dim

    def _groups(self, features: Tensor) -> tuple[Tensor, Tensor, int]:
        """Patches (B, N, C), the token of each (B, N), and how many tokens there are."""
        patches, count = rearrange(features, "b h w c -> b (h w) c"), self.num_tokens(*features.shape[1:3])
        return patches, merge_groups(patches, count), count

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        return group_means(*self._groups(features))

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """A patch has its part of its token; all tokens weigh the same."""
        _, group, count = self._groups(features)
        sizes = F.one_hot(group, count).sum(1)  # (B, count)
        return rearrange(1 / (count * sizes.gather(1, group)), "b (h w) -> b h w", h=features.shape[1])
