"""PruneSID, arXiv 2603.09480 (repository ZhengyaoFang/PruneSID): training-free.

Patches are grouped by the principal component of the image that each has most of, a group for every four
tokens. In a group, by falling attention, patches that are like one before them stand behind those that are
not; and each group keeps its first ones, one at least, the others by how many in it are unlike.

    alike           cosine above tokens / 32 times the mean of all pairs: none is where tokens are many
    at most         five in a group for every 64 tokens, more where that does not make the budget

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64, of 16 groups

CLS is one of the paper's tokens and tokens are in the order of groups; here all are patches, in raster order.
The released code estimates components from a random start, here they are exact, so that an image always has
the same tokens. In a tower without CLS (SigLIP) what a patch receives stands for what CLS pays it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.cues import split_patches
from compressors.selection import (
    SubsetCompressor,
    choose_in_float32,
    choose_largest,
    fill_room,
    rank_in_groups,
)

TOKENS_OF_GROUP = 4
TOKENS_OF_MEAN_LIKENESS = 32
LIMIT, TOKENS_OF_LIMIT = 5, 64


def group_by_component(tokens: Tensor, group_count: int) -> Tensor:
    """The principal component that each of (B, N, C) has most of, (B, N) in 0 .. group_count - 1."""
    observed = tokens.sigmoid()
    observed = observed - observed.mean(-1, keepdim=True)
    _, vectors = torch.linalg.eigh(observed @ observed.mT)  # (B, N, N), the largest last
    return vectors.flip(-1)[..., :group_count].abs().argmax(-1)


def mark_unlike(similarity: Tensor, attention: Tensor, groups: Tensor, threshold: Tensor) -> Tensor:
    """True for a patch (B, N) that is unlike all that are marked before it in its group, by falling
    attention."""
    is_alike = (similarity > threshold) & (groups.unsqueeze(1) == groups.unsqueeze(2))  # (B, N, N)
    order = attention.argsort(dim=-1, descending=True, stable=True)
    # in that order, a step is two kernels: hundreds of patches take a step each
    sorted_rows = is_alike.gather(1, order.unsqueeze(2).expand_as(is_alike))
    is_alike = sorted_rows.gather(2, order.unsqueeze(1).expand_as(is_alike))
    is_hidden = torch.zeros_like(groups, dtype=torch.bool)
    for place in range(groups.shape[1] - 1):
        is_hidden[:, place + 1 :].bitwise_or_(
            is_alike[:, place, place + 1 :] > is_hidden[:, place : place + 1]
        )
    return torch.zeros_like(is_hidden).scatter(1, order, ~is_hidden)


def share_tokens_of_groups(sizes: Tensor, unlike: Tensor, count: int, budget: int) -> Tensor:
    """How many of `count` tokens each group gets, (B, G), given its numbers of patches and of unlike ones."""
    limit = LIMIT * -(-budget // TOKENS_OF_LIMIT)
    limits = torch.minimum(unlike, sizes).clamp(max=limit)
    # by how much the limits must rise until they make the budget
    rises = torch.arange(budget + 1, device=sizes.device)
    risen = torch.minimum(limits.unsqueeze(-1) + rises, sizes.unsqueeze(-1)).sum(1)  # (B, rises)
    rise = (risen < budget).sum(-1, keepdim=True)
    limits = torch.minimum(limits + rise, sizes)
    least = sizes.clamp(max=1)
    # what is left after one token a group is shared by the numbers of unlike patches; running totals are
    # rounded, not the shares, so that their sum is right
    remaining_count = (count - least.sum(-1, keepdim=True)).clamp(min=0)
    running_shares = unlike.cumsum(-1) / unlike.sum(-1, keepdim=True)
    ends = (running_shares * remaining_count).round().long()
    additions = ends.diff(dim=-1, prepend=torch.zeros_like(ends[:, :1]))
    shares = torch.minimum(least + additions, limits)
    order = unlike.argsort(dim=-1, descending=True, stable=True)
    return fill_room(shares, limits, order, count)


@choose_in_float32
def choose_by_components(tokens: Tensor, attention: Tensor, count: int, budget: int) -> Tensor:
    """Indices (B, count), ascending, of the patches (B, N, C) with attention (B, N), by the rules for
    `budget` tokens. Ties: the first one."""
    attention = attention.float()
    batch, patches, channels = tokens.shape
    group_count = max(1, min(budget // TOKENS_OF_GROUP, channels))
    groups = group_by_component(tokens, group_count)
    unit = F.normalize(tokens, dim=-1)
    similarity = unit @ unit.mT  # (B, N, N)
    pairs = max(1, patches * (patches - 1) // 2)
    mean = similarity.triu(1).sum((1, 2), keepdim=True) / pairs
    is_unlike = mark_unlike(similarity, attention, groups, budget / TOKENS_OF_MEAN_LIKENESS * mean)
    members = F.one_hot(groups, group_count)  # (B, N, G)
    unlike = (members * is_unlike.unsqueeze(-1)).sum(1)
    shares = share_tokens_of_groups(members.sum(1), unlike, count, budget)
    # the unlike ones first, each by falling attention
    place = attention.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    priority = is_unlike * patches - place
    is_kept = rank_in_groups(priority, groups, group_count) < shares.gather(1, groups)
    return choose_largest(is_kept, count)


@register("prunesid")
class PruneSID(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, from groups by principal component those that
    are attended and unlike."""

    needs_cues = ("attention",)

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        count = self.num_tokens(*features.shape[1:3])
        return choose_by_components(patches, cues["attention"], count, count)
