"""Token merging (ToMe), arXiv 2210.09461, on the tower's output.

The tokens are split in two sets, every other one; each of the first finds its most similar in the second, and
the most similar pairs are merged, weighted by how many patches a token already stands for. A step merges at
most half of the tokens, so there are as many steps as the budget takes. Nothing is learned.

    H*W -> the tokens of `rate` x `rate` windows        729 -> 81 at rate = 3, by steps 365, 183, 92, 81

In the paper, tokens merge between the tower's blocks and are compared by their keys, mean over heads. Here
they merge behind the tower and the features themselves are compared; with `cues=true` the keys of the block
whose output is used, a merged token's being the mean of its patches'.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.cues import split_patches
from compressors.grid import BudgetCompressor, GridPolicy
from compressors.selection import choose_in_float32


def average_groups(tokens: Tensor, group: Tensor, count: int) -> Tensor:
    """Mean of the tokens (B, N, C) of each group (B, N) in 0 .. count - 1 -> (B, count, C); of none 0."""
    batch, _, channels = tokens.shape
    index = group.unsqueeze(-1).expand_as(tokens)
    wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))  # sums of many overflow in half
    zeros = torch.zeros(batch, count, channels, dtype=wide.dtype, device=tokens.device)
    means = zeros.scatter_reduce(1, index, wide, "mean", include_self=False)
    return means.to(tokens.dtype)


def match_pairs(tokens: Tensor, merges: int) -> Tensor:
    """One step: into which of (B, n, C) each is merged, (B, n); n - merges of them stay, their own place.

    Ties go to the pair whose tokens come first.
    """
    unit = F.normalize(tokens, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].mT  # (B, first set, second set)
    best = similarity.max(-1).values
    partner = similarity.argmax(-1)
    merged = best.argsort(dim=-1, descending=True, stable=True)[:, :merges]  # of the first set
    places = torch.arange(tokens.shape[1], device=tokens.device)
    goes_to = places.repeat(len(tokens), 1)
    # token 2i of all is the i-th of the first set, token 2i + 1 the i-th of the second
    return goes_to.scatter(1, 2 * merged, 2 * partner.gather(1, merged) + 1)


@choose_in_float32
def find_groups(features: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Which of `count` tokens each patch (B, N, C) becomes part of, (B, N), and the patches (B, count) that
    the others were merged into; tokens in their order, which is that of the raster."""
    remaining = features.shape[1]
    group = torch.arange(remaining, device=features.device).repeat(len(features), 1)
    token_places = group  # at first each patch is a token, at its own place
    while remaining > count:
        merges = min(remaining // 2, remaining - count)
        tokens = average_groups(features, group, remaining)
        goes_to = match_pairs(tokens, merges)
        stays = goes_to == torch.arange(remaining, device=features.device)
        new_places = stays.cumsum(1) - 1
        group = new_places.gather(1, goes_to).gather(1, group)
        remaining -= merges
        # True sorts first, and a stable sort keeps the order
        staying = stays.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :remaining]
        token_places = token_places.gather(1, staying)
    return group, token_places


@register("tome")
class TokenMerging(BudgetCompressor):
    """Patches merged by similarity, with `cues` of the tower's keys, to one token for each `rate` x `rate`
    window's worth, their mean."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        cues: bool = False,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy, tokens, positions)
        self.out_dim = dim
        if cues:
            self.needs_cues = ("keys",)

    def _group_patches(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, N, C), the token of each (B, N), and the patches (B, count) that tokens stand at."""
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        compared = cues.get("keys", patches)
        group, token_places = find_groups(compared, self.num_tokens(*features.shape[1:3]))
        return patches, group, token_places

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, group, token_places = self._group_patches(features)
        return average_groups(patches, group, token_places.shape[1])

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, _, token_places = self._group_patches(features)
        return token_places

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """A patch has its part of its token; all tokens weigh the same."""
        _, group, token_places = self._group_patches(features)
        count = token_places.shape[1]
        sizes = F.one_hot(group, count).sum(1)  # (B, count)
        weights = 1 / (count * sizes.gather(1, group))
        return rearrange(weights, "b (h w) -> b h w", h=features.shape[1])
