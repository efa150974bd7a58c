"""SCOPE, arXiv 2510.24214 (repository kinredon/SCOPE), coverage times saliency: training-free.

Patches are chosen one at a time: the one by which the patches are covered best, a patch being covered by the
kept one that is most like it, times what CLS pays it.

    gain of j = attention_j^saliency * sum over i of max(0, cosine(i, j) - cover of i)

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64

In a tower without CLS (SigLIP) what a patch receives on average stands for what CLS pays it.
"""

import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_at_least
from compressors.cues import split_patches
from compressors.grid import GridPolicy
from compressors.selection import SubsetCompressor, check_coverage, choose_in_float32, cover_targets


@choose_in_float32
def choose_most_covering(tokens: Tensor, saliency: Tensor, count: int, least: float | None = None) -> Tensor:
    """Indices (B, count), ascending, of greedy facility location among (B, N, C), gains times saliency
    (B, N), -1 last where the share `least` is covered before. Ties: the first one."""
    unit = F.normalize(tokens, dim=-1)
    similarity = unit @ unit.mT  # (B, N, N)
    return cover_targets(similarity, saliency, count, least)


@register("scope")
class Scope(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, those that cover all others best; `saliency` is
    the power of the attention, 0: coverage alone. With `coverage` no more of an image than cover this share
    of it: the mean cosine of its patches with the kept ones that are most like them."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        saliency: float = 1.0,
        coverage: float | None = None,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(dim, rate=rate, tokens=tokens, grid_policy=grid_policy, positions=positions)
        check_at_least(0, saliency=saliency)
        check_coverage(coverage)
        self.coverage = coverage
        self.varies = coverage is not None
        self.saliency = saliency
        self.needs_cues = ("attention",)

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        saliency = cues["attention"].float() ** self.saliency
        count = self.num_tokens(*features.shape[1:3])
        return choose_most_covering(patches, saliency, count, self.coverage)
