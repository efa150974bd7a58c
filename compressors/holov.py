"""HoloV, arXiv 2510.02912 (repository obananas/HoloV): training-free.

The grid is cut into `strips` runs of raster order. A strip gets tokens by how much CLS pays its patches and
by how much their likenesses to one another vary, and keeps those to which CLS pays most.

    score of a patch = a + `variety` * v * mean(a) / mean(v), a its attention, v the variance of its cosines
    share of a strip = the mean of its scores by the sum of all strips', rounded down, the rest to the best

Both means are a strip's own, as in the released code, so that `variety` makes every strip's mean greater by
the same factor: the shares are those of attention, unless the patches of a strip are all alike.

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64, of 16 strips of 36

The paper compares patches behind the projector, here they are compared before it. The released code gives a
strip's tokens by falling attention, and where a strip gets more than it has, zeros at the end; here tokens
are in raster order, and the surplus goes to the best strips that have room. In a tower without CLS (SigLIP)
what a patch receives on average stands for what CLS pays it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_at_least
from compressors.cues import split_patches
from compressors.grid import GridPolicy
from compressors.selection import (
    SubsetCompressor,
    choose_in_float32,
    choose_largest,
    fill_room,
    rank_in_groups,
)

SMALL = 1e-6  # against division by zero; the released code's


def score_strip(tokens: Tensor, attention: Tensor, variety: float) -> Tensor:
    """Mean score (B,) of a strip's patches (B, n, C) with attention (B, n)."""
    unit = F.normalize(tokens, dim=-1)
    similarity = unit @ unit.mT  # (B, n, n)
    similarity.diagonal(dim1=1, dim2=2).zero_()
    other_count = max(1, tokens.shape[1] - 1)
    means = similarity.sum(-1, keepdim=True) / other_count
    variance = (similarity - means).square().sum(-1) / other_count  # (B, n); its own zero is among them
    scale = attention.mean(-1, keepdim=True) / (variance.mean(-1, keepdim=True) + SMALL)
    return (attention + variety * variance * scale).mean(-1)


def share_tokens(scores: Tensor, sizes: Tensor, count: int) -> Tensor:
    """How many of `count` tokens each strip gets, (B, S), given scores (B, S) and numbers of patches (S,)."""
    total = scores.sum(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    shares = (count * scores / total).floor().long()
    order = scores.argsort(dim=-1, descending=True, stable=True)
    ranks = order.argsort(dim=-1)
    shares = shares + (ranks < count - shares.sum(-1, keepdim=True))
    # what is too much for a strip goes to the best ones that have room
    shares = torch.minimum(shares, sizes)
    return fill_room(shares, sizes.expand_as(shares), order, count)


@choose_in_float32
def choose_by_strips(tokens: Tensor, attention: Tensor, count: int, strips: int, variety: float) -> Tensor:
    """Indices (B, count), ascending, of the patches (B, N, C) with attention (B, N). Ties: the first one."""
    strips = min(strips, tokens.shape[1])
    attention = attention.float()
    token_strips = tokens.tensor_split(strips, 1)
    scores: list[Tensor] = []
    numbers: list[Tensor] = []
    for strip_tokens, strip_attention in zip(token_strips, attention.tensor_split(strips, 1)):
        numbers.append(torch.full(strip_attention.shape[1:], len(scores), device=tokens.device))
        scores.append(score_strip(strip_tokens, strip_attention, variety))
    strip_of_patch = torch.cat(numbers)
    sizes = F.one_hot(strip_of_patch, strips).sum(0)
    shares = share_tokens(torch.stack(scores, 1), sizes, count)
    is_kept = rank_in_groups(attention, strip_of_patch, strips) < shares[:, strip_of_patch]
    return choose_largest(is_kept, count)


@register("holov")
class HoloV(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, shared among `strips` by attention and, weighed
    with `variety`, by how their patches differ."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        strips: int = 16,
        variety: float = 0.09,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(dim, rate=rate, tokens=tokens, grid_policy=grid_policy, positions=positions)
        check_at_least(1, strips=strips)
        check_at_least(0, variety=variety)
        self.strips = strips
        self.variety = variety
        self.needs_cues = ("attention",)

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        count = self.num_tokens(*features.shape[1:3])
        return choose_by_strips(patches, cues["attention"], count, self.strips, self.variety)
