"""Attention pooling of windows, Molmo and Molmo 2, arXiv 2409.17146.

The mean of a window's patches is the one query that reads these patches; the answer is the window's token.
Nothing is added to it: what the attention says is all that is left of the window.

    H*W -> ceil(H/k) * ceil(W/k)        729 -> 196 at k = 2; 81 at k = 3, Molmo 2's for video
"""

from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_at_least, check_channels, require_llm_dim
from compressors.grid import (
    GridPolicy,
    WindowCompressor,
    fit_to_windows,
    make_window_mask,
    split_windows,
)
from compressors.layers import Attention, GatedMLP


@register("window_attention_pool")
class WindowAttentionPool(WindowCompressor):
    """Windows of `rate` x `rate` patches, read by their mean.

    heads, head_dim    of the attention (16 of 72 in Molmo 2)
    levels             hidden states of the tower to read beside its output, in the channels (one more there)
    projector          Molmo's gated MLP to the LLM's width, `mlp_width` wide (None: four times that)
    """

    def __init__(
        self,
        dim: int,
        llm_dim: int | None = None,
        *,
        rate: int = 3,
        heads: int = 16,
        head_dim: int = 72,
        levels: tuple[int, ...] = (),
        projector: bool = False,
        mlp_width: int | None = None,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid_policy)
        self.dim = dim
        self.needs_levels = tuple(levels)
        self.projects = projector
        self.pool = Attention((1 + len(levels)) * dim, dim, heads, head_dim)
        self.out_dim = dim
        self.projector: nn.Module = nn.Identity()
        if projector:
            self.out_dim = require_llm_dim(llm_dim, "window_attention_pool with projector=true")
            if mlp_width is None:
                mlp_width = 4 * self.out_dim
            check_at_least(1, mlp_width=mlp_width)
            self.projector = GatedMLP(dim, mlp_width, self.out_dim)

    def _split_features(self, features: Tensor) -> tuple[Tensor, Tensor, MaybeTensor]:
        """Patches (B*h*w, r*r, C), their means (B*h*w, 1, C), and which are real (B*h*w, 1, 1, r*r)."""
        check_channels(features, self.dim, self.needs_levels)
        fitted, real = fit_to_windows(features, self.rate, self.grid_policy)
        patches = split_windows(fitted, self.rate)
        mask = make_window_mask(real, len(features), self.rate)
        if mask is None:
            return patches, patches.mean(1, keepdim=True), None
        counts = mask.sum(-1).to(patches.dtype)  # (B*h*w, 1, 1)
        mean = patches.sum(1, keepdim=True) / counts  # what fills windows is zero
        return patches, mean, mask

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, mean, mask = self._split_features(features)
        pooled = self.pool(mean, patches, patches, mask)
        count = self.num_tokens(*features.shape[1:3])
        return self.projector(rearrange(pooled, "(b n) 1 c -> b n c", n=count))

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, mean, mask = self._split_features(features)
        return self.weigh_windows(self.pool.weights(mean, patches, mask), features)
