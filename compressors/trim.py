"""TRIM, arXiv 2409.10994 (repository FreedomIntelligence/TRIM), CLIP's metric: training-free.

The patches of highest significance are kept, as they are, and one token is the mean of all others.

    significance of i    softmax over an image's patches of minus the product of the patch with the question,
                         in the space that tower and text encoder share

    H*W -> the tokens of `rate` x `rate` windows: patches in raster order, then the mean        576 -> 63 + 1

`iqr=1.5` is the paper's way to settle the number: of the budget only patches are kept whose significance is
beyond the third quartile by so many interquartile ranges. With `per_image` an image has only these and the
mean, as in the paper, each image its own number; without it the places that are left hold the mean, too.
Without a question, for which the released code has no rule, patches are evenly spaced.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_at_least
from compressors.errors import UsageError
from compressors.grid import BudgetCompressor, GridPolicy
from compressors.relevance import find_texts, split_joint
from compressors.selection import choose_in_float32, choose_largest, share_patches

PAPERS_RANGES = 1.5  # interquartile ranges beyond which its rule keeps a patch


@choose_in_float32
def measure_significance(joint: Tensor, text: Tensor, is_text: Tensor) -> Tensor:
    """Of each patch (B, N, E) the logarithm of its significance for the pieces (B, M, E) of the question that
    there are, (B, N), up to a constant: the softmax of products as large as these may be zero for many."""
    shares = is_text / is_text.sum(-1, keepdim=True).clamp(min=1)
    question = (text.float() * shares.unsqueeze(-1)).sum(1, keepdim=True)  # (B, 1, E)
    return -(joint * question).sum(-1)


def space_evenly(patches: int, count: int, device: torch.device) -> Tensor:
    """1 for `count` of so many patches, evenly spaced, 0 for the others."""
    places = (torch.arange(count, device=device) * patches) // max(1, count)
    return torch.zeros(patches, device=device).scatter(0, places, 1)


def find_outliers(significance: Tensor, ranges: float) -> Tensor:
    """Which of (B, N) are beyond the third quartile of their row by so many interquartile ranges."""
    if not len(significance):  # of which `quantile` takes none
        return significance > 0
    quarters = torch.tensor([0.25, 0.75], device=significance.device)
    first, third = significance.quantile(quarters, dim=-1, keepdim=True)  # each (B, 1)
    return significance > third + ranges * (third - first)


@register("trim")
class Trim(BudgetCompressor):
    """As many tokens as `rate` x `rate` windows or `tokens`: the most significant patches, and with
    `aggregate` the mean of the others. `iqr`: of those patches outliers alone, beyond so many interquartile
    ranges; `per_image`: and no tokens in the place of the others, beyond 1.5 ranges by default."""

    needs_cues = ("joint",)

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        aggregate: bool = True,
        iqr: float | None = None,
        per_image: bool = False,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy, tokens, positions)
        if per_image and iqr is None:
            iqr = PAPERS_RANGES
        if iqr is not None:
            check_at_least(0, iqr=iqr)
        if iqr is not None and not aggregate:
            raise UsageError("trim: iqr leaves places to the mean of the other patches; take aggregate=true")
        self.out_dim = dim
        self.aggregate = aggregate
        self.iqr = iqr
        self.varies = per_image

    def _choose(
        self, features: Tensor, text: MaybeTensor, text_mask: MaybeTensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, N, C), the places (B, K) of the most significant ones, and which of these stay."""
        patches, joint, _ = split_joint(features, self.out_dim, text, "trim")
        assert text is not None  # it would have been refused
        is_text = find_texts(text, text_mask)
        count = self.num_tokens(*features.shape[1:3]) - int(self.aggregate)
        significance = measure_significance(joint, text, is_text)
        evenly = space_evenly(patches.shape[1], count, patches.device)
        scores = torch.where(is_text.any(-1, keepdim=True), significance, evenly)
        chosen_places = choose_largest(scores, count)
        stays = torch.ones_like(chosen_places, dtype=torch.bool)
        if self.iqr is not None:
            is_outlier = find_outliers(significance.softmax(-1), self.iqr)
            stays = is_outlier.gather(1, chosen_places) | ~is_text.any(-1, keepdim=True)
        return patches, chosen_places, stays

    def _make_weights(
        self, features: Tensor, text: MaybeTensor, text_mask: MaybeTensor
    ) -> tuple[Tensor, Tensor]:
        """Patches (B, N, C), and what each token has of them (B, M, N)."""
        patches, chosen_places, stays = self._choose(features, text, text_mask)
        weights = F.one_hot(chosen_places, patches.shape[1]).float() * stays.unsqueeze(-1)
        if not self.aggregate:
            return patches, weights
        is_other = 1 - weights.sum(1, keepdim=True)  # (B, 1, N), 1 for patches that are no token
        mean = is_other / is_other.sum(-1, keepdim=True).clamp(min=1)
        # outliers in raster order, then the mean as often as there is room
        order = (~stays).long().argsort(dim=-1, stable=True)
        weights = torch.where(stays.unsqueeze(-1), weights, mean)
        weights = torch.take_along_dim(weights, order.unsqueeze(-1), 1)
        return patches, torch.cat([weights, mean], 1)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, weights = self._make_weights(features, text, text_mask)
        return (weights @ patches.float()).to(patches.dtype)

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, chosen_places, stays = self._choose(features, text, text_mask)
        order = (~stays).long().argsort(dim=-1, stable=True)
        places = chosen_places.masked_fill(~stays, -1).gather(1, order)
        return F.pad(places, (0, int(self.aggregate)), value=-1)

    def present(
        self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None
    ) -> MaybeTensor:
        if not self.varies:
            return None
        _, _, stays = self._choose(features, text, text_mask)
        in_order = stays.sort(-1, descending=True).values  # as in `_make_weights`
        return F.pad(in_order, (0, 1), value=True)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, weights = self._make_weights(features, text, text_mask)
        is_there = self.present(features, text, text_mask)
        if is_there is not None:
            weights = weights * is_there.unsqueeze(-1)
        return share_patches(weights, features.shape[1])
