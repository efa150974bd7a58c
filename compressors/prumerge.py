"""PruMerge, arXiv 2403.15388.

The patches that receive most attention are kept; each takes in the removed patches whose keys are nearest to
its own, weighted by the attention that they receive.

    token p = y_p + sum of a_q y_q over the k nearest removed patches q

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64 at rate = 3

In the paper attention is CLIP's CLS token's and keys are its penultimate block's, and the number of outliers
of the attention, different for each image, decides how many are kept. Here the budget does, so that
compressors can be compared; and the normalised features stand for queries and keys, a patch's attention being
the mean of what all others pay it. `cues=true` takes the tower's own instead: what CLS pays a patch, what the
patch receives in a tower without CLS (SigLIP), and the keys, mean over heads, of the block whose output is
used. The released code differs in two more points: the nearest are sought among kept patches, too, and one
token is added, the weighted sum of all removed patches.

PruMerge+ keeps evenly spaced patches beside the attended ones: `spaced`, their share of the tokens. They are
spaced over what attention has left, in raster order, so that the budget is met; in the released code every
n-th patch joins that is not kept yet, whatever their number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_at_least, check_share
from compressors.cues import split_patches
from compressors.grid import BudgetCompressor, GridPolicy
from compressors.selection import choose_in_float32, choose_largest, list_others, share_patches


@choose_in_float32
def average_received_attention(tokens: Tensor) -> Tensor:
    """Mean attention that each of (B, N, C) receives from the others, (B, N), sum 1."""
    states = F.layer_norm(tokens, tokens.shape[-1:])
    scale = states.shape[-1] ** -0.5
    scores = states @ states.mT * scale  # (B, N, N)
    if tokens.shape[1] > 1:  # its own key is each query's best
        scores.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return scores.softmax(-1).mean(1)


def choose_centres(attention: Tensor, count: int, spaced_count: int) -> Tensor:
    """Places (B, count), ascending, of the largest of attention (B, N) but for `spaced_count` of them, which
    are evenly spaced among all others in raster order. Ties: the first one."""
    attended = choose_largest(attention, count - spaced_count)
    if not spaced_count:
        return attended
    other_places = list_others(attended, attention.shape[1])  # (B, R)
    # the middles of as many stretches
    ends = (2 * torch.arange(spaced_count, device=attention.device) + 1) * other_places.shape[1]
    spaced = other_places[:, ends // (2 * spaced_count)]
    return torch.cat([attended, spaced], 1).sort(-1).values


@choose_in_float32
def make_merge_weights(attention: Tensor, keys: Tensor, centres: Tensor, neighbours: int) -> Tensor:
    """What the tokens at `centres` (B, M) have of the patches, (B, M, N), given the patches' attention (B, N)
    and keys (B, N, d).

    Ties go to the patch that comes first.
    """
    count = centres.shape[1]
    is_centre = torch.zeros_like(attention, dtype=torch.bool).scatter(1, centres, True)
    keys = F.normalize(keys.float(), dim=-1)
    similarity = torch.take_along_dim(keys, centres.unsqueeze(-1), 1) @ keys.mT  # (B, M, N)
    similarity = similarity.masked_fill(is_centre.unsqueeze(1), -torch.inf)
    by_similarity = similarity.argsort(dim=-1, descending=True, stable=True)
    # no more than there are removed patches: the masked ones come last
    nearest = by_similarity[..., : min(neighbours, keys.shape[1] - count)]
    share = torch.take_along_dim(attention.unsqueeze(1), nearest, -1)
    weights = torch.zeros_like(similarity).scatter(-1, centres.unsqueeze(-1), 1.0)
    return weights.scatter(-1, nearest, share)


@register("prumerge")
class PruMerge(BudgetCompressor):
    """The most attended patches, one for each `rate` x `rate` window's worth, and into each its `neighbours`
    nearest removed ones; by the tower's own attention and keys with `cues`. The share `spaced` of them are
    evenly spaced instead."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        neighbours: int = 32,
        tokens: int | float | None = None,
        cues: bool = False,
        spaced: float = 0.0,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy, tokens, positions)
        check_at_least(0, neighbours=neighbours)
        check_share(spaced=spaced)
        self.out_dim = dim
        self.neighbours = neighbours
        self.spaced = spaced
        if cues:
            self.needs_cues = ("attention", "keys")

    def _read_tower(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, N, C), their attention (B, N) and their keys (B, N, d)."""
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        if not cues:
            return patches, average_received_attention(patches), patches
        return patches, cues["attention"], cues["keys"]

    def _choose_centres(self, features: Tensor, attention: Tensor) -> Tensor:
        """The patches (B, M) that others are merged into."""
        count = self.num_tokens(*features.shape[1:3])
        return choose_centres(attention, count, round(self.spaced * count))

    def _compute_weights(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, C) and what each token is made of, (B, M, N)."""
        patches, attention, keys = self._read_tower(features)
        centres = self._choose_centres(features, attention)
        return patches, make_merge_weights(attention, keys, centres, self.neighbours)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, weights = self._compute_weights(features)
        return weights.to(patches.dtype) @ patches

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, attention, _ = self._read_tower(features)
        return self._choose_centres(features, attention)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, weights = self._compute_weights(features)
        return share_patches(weights, features.shape[1])
