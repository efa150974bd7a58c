"""MMTok, arXiv 2508.18264 (repository Ironieser/MMTok), multimodal coverage: training-free.

Patches are chosen one at a time: the one by which the words of the question and all patches are covered best,
each being covered by the kept patch that it likes most. A word likes the patches, behind the projector, by a
softmax of cosines with its embedding; a patch likes the others by a softmax of cosines of their features.

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64

What the words like counts as one whole, what the patches like as `patch_weight` of it. The released code
takes one image at a time; here images are rows, each with the words of its own question. Without words the
patches alone are covered.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_at_least, check_positive
from compressors.errors import UsageError
from compressors.grid import GridPolicy
from compressors.selection import SubsetCompressor, check_coverage, choose_in_float32, cover_targets


@choose_in_float32
def compute_likings(targets: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """How much each of `targets` (B, T, D) likes the candidates (B, N, D): (B, T, N), each target's sum 1."""
    cosines = F.normalize(targets, dim=-1) @ F.normalize(candidates.float(), dim=-1).mT
    return (cosines / temperature).softmax(-1)


@register("mmtok")
class MMTok(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, those that cover the question and all patches
    best; the temperatures are those of what words and patches like. With `coverage` no more of an image than
    cover this share of what all its patches would."""

    needs_text = True
    needs_projected = True

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        patch_weight: float = 0.5,
        text_temperature: float = 0.02,
        patch_temperature: float = 0.2,
        coverage: float | None = None,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(dim, rate=rate, tokens=tokens, grid_policy=grid_policy, positions=positions)
        check_at_least(0, patch_weight=patch_weight)
        check_positive(text_temperature=text_temperature, patch_temperature=patch_temperature)
        check_coverage(coverage)
        self.coverage = coverage
        self.varies = coverage is not None
        self.patch_weight = patch_weight
        self.text_temperature = text_temperature
        self.patch_temperature = patch_temperature

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        if text is None:
            raise UsageError("mmtok needs the question's embeddings")
        patches = features[..., : self.out_dim].flatten(1, 2)
        projected = features[..., self.out_dim :].flatten(1, 2)  # (B, N, D)
        if projected.shape[-1] != text.shape[-1]:
            raise UsageError(
                f"mmtok: features have {features.shape[-1]} channels: expected {self.out_dim} and the patch "
                f"behind the projector, {text.shape[-1]} channels, behind them"
            )
        if text_mask is None:
            text_mask = torch.ones_like(text[..., 0])
        is_word = text_mask.bool().unsqueeze(-1)  # (B, T, 1)
        words = is_word.sum(1, keepdim=True).clamp(min=1)
        by_words = compute_likings(text.masked_fill(~is_word, 0), projected, self.text_temperature)
        by_words = by_words.masked_fill(~is_word, 0) / words
        by_patches = compute_likings(patches, patches, self.patch_temperature) / patches.shape[1]
        likings = torch.cat([by_words, self.patch_weight * by_patches], 1)  # (B, T + N, N)
        return cover_targets(likings.mT, None, self.num_tokens(*features.shape[1:3]), self.coverage)
