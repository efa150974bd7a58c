"""Attention pooling of windows, Molmo and Molmo 2, arXiv 2409.17146.

The mean of a window's patches is the one query that reads these patches; the answer is the window's token.
Nothing is added to it: what the attention says is all that is left of the window.

    H*W -> ceil(H/k) * ceil(W/k)        729 -> 196 at k = 2; 81 at k = 3, Molmo 2's for video
"""

from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import at_least, channels, given
from compressors.grid import GridPolicy, WindowCompressor, fit, split_windows, unsplit, window_mask
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
        read = (1 + len(levels)) * dim
        self.dim, self.needs_levels, self.projects = dim, tuple(levels), projector
        self.pool = Attention(read, dim, heads, head_dim)
        self.out_dim, self.projector = dim, nn.Identity()
        if projector:
            self.out_dim = given(llm_dim, "llm_dim", "window_attention_pool with projector=true")
            mlp_width = 4 * llm_dim if mlp_width is None else mlp_width
            at_least(1, mlp_width=mlp_width)
            self.projector = GatedMLP(dim, mlp_width, llm_dim)

    def _windows(self, features: Tensor) -> tuple[Tensor, Tensor, MaybeTensor]:
        """Patches (B*h*w, r*r, C), their means (B*h*w, 1, C), and which are real (B*h*w, 1, 1, r*r)."""
        channels(features, self.dim, self.needs_levels)
        fitted, real = fit(features, self.rate, self.grid_policy)
        patches, mask = split_windows(fitted, self.rate), window_mask(real, len(features), self.rate)
        if mask is None:
            return patches, patches.mean(1, keepdim=True), None
        mean = patches.sum(1, keepdim=True) / mask.sum(-1).to(patches.dtype)  # what fills windows is zero
        return patches, mean, mask

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, mean, mask = self._windows(features)
        pooled = self.pool(mean, patches, patches, mask)
        return self.projector(rearrange(pooled, "(b n) 1 c -> b n c", b=len(features)))

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """The mean over the heads."""
        patches, mean, mask = self._windows(features)
        weights = self.pool.weights(mean, patches, mask).mean(1).squeeze(1)  # (B*h*w, r*r)
        grid = tuple(features.shape[1:3])
        return unsplit(weights, grid, self.out_grid(*grid))
