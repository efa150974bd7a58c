"""Spatial attention pooling (SAP), FlashSloth, arXiv 2412.04317.

A two-layer scorer gives each patch a logit; within every k x k window a softmax turns the logits into
weights, and the window becomes the weighted sum of its raw features. A zero scorer is average pooling.

    H*W -> ceil(H/k) * ceil(W/k)        729 -> 81 at k = 3
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_probability
from compressors.grid import GridPolicy, WindowCompressor, fit_to_windows, weigh_patches


def softmax_in_windows(scores: Tensor, rate: int, real: Tensor | None = None) -> Tensor:
    """Logits (B, H, W) -> weights (B, H, W), sum 1 in each `rate` x `rate` window; `real` (H, W) masks."""
    if real is not None:
        scores = scores.masked_fill(~real, -torch.inf)
    grouped = rearrange(scores, "b (h i) (w j) -> b h w (i j)", i=rate, j=rate)
    weights = grouped.softmax(-1)
    return rearrange(weights, "b h w (i j) -> b (h i) (w j)", i=rate, j=rate)


def sum_windows(features: Tensor, weights: Tensor, rate: int) -> Tensor:
    """Weighted sum of (B, H, W, C) over `rate` x `rate` windows -> (B, H/rate, W/rate, C).

    One matrix product for each row of windows, the weights on a block diagonal: the features are read where
    they lie, and nothing of their size is written, forward or backward, but their own gradient.
    """
    grouped = rearrange(weights.to(features.dtype), "b (h i) (w j) -> b h 1 i w j", i=rate, j=rate)
    columns = grouped.shape[4]  # of windows
    same_window = torch.eye(columns, dtype=features.dtype, device=features.device)
    # window n weighs its own patches only
    block_diagonal = grouped * rearrange(same_window, "n w -> n 1 w 1")
    mixing = rearrange(block_diagonal, "b h n i w j -> b h n (i w j)")
    rows = rearrange(features, "b (h i) w c -> b h (i w) c", i=rate)
    return mixing @ rows


@register("sap")
class SpatialAttentionPooling(WindowCompressor):
    """SAP with `rate` x `rate` windows; Linear - ReLU - Dropout - Linear scorer of the tower's width."""

    def __init__(self, dim: int, *, rate: int = 3, dropout: float = 0.1, grid_policy: GridPolicy = "error"):
        super().__init__(rate, grid_policy)
        check_probability(dropout=dropout)
        self.out_dim = dim
        self.scorer = nn.Sequential(
            nn.Linear(dim, dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(dim, 1),
        )

    def _compute_weights(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features fitted to windows (B, H', W', C), and the weights of their patches (B, H', W')."""
        features, real = fit_to_windows(features, self.rate, self.grid_policy)
        scores = self.scorer(features).squeeze(-1)  # (B, H, W)
        # in half precision a softmax of nine nearly equal logits loses what tells them apart
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return features, softmax_in_windows(scores, self.rate, real)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        fitted, weights = self._compute_weights(features)
        pooled = sum_windows(fitted, weights, self.rate)
        return rearrange(pooled, "b h w c -> b (h w) c")

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        _, weights = self._compute_weights(features)
        return weigh_patches(weights, height, width)
