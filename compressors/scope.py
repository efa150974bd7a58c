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
from compressors.selection import SubsetCompressor, choose_in_float32, cover_targets


@choose_in_float32
def choose_most_covering(tokens: Tensor, saliency: Tensor, count: int) -> Tensor:
    """Indices (B, count), ascending, of greedy facility location among (B, N, C), gains times saliency
    (B, N). Ties: the first one."""
    unit = F.normalize(tokens, dim=-1)
    similarity = unit @ unit.mT  # (B, N, N)
    return cover_targets(similarity, saliency, count)


@register("scope")
class Scope(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, those that cover all others best; `saliency` is
    the power of the attention, 0: coverage alone."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        saliency: float = 1.0,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy, tokens, positions)
        check_at_least(0, saliency=saliency)
        self.out_dim = dim
        self.saliency = saliency
        self.needs_cues = ("attention",)

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        saliency = cues["attention"].float() ** self.saliency
        return choose_most_covering(patches, saliency, self.num_tokens(*features.shape[1:3]))
