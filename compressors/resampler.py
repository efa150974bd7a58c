"""Perceiver resampler, Flamingo, arXiv 2204.14198, and Idefics2, arXiv 2405.02246.

Learned latents read the patches and one another by cross-attention, then pass a feed-forward network; a few
such layers, and the latents are the tokens.

    flamingo   LayerNorm, feed-forward network of two layers with ReLU
    idefics2   RMSNorm, gated feed-forward network with SiLU, fewer heads for keys and values

    latents --attend--> [patches, latents] - FFN - (n times) - norm

    H*W -> Q        729 -> 64
"""

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.base import Compressor, MaybeTensor, register
from compressors.checks import check_at_least, check_choice
from compressors.layers import Attention, GatedMLP

ResamplerForm = Literal["flamingo", "idefics2"]


def make_norm(width: int, form: ResamplerForm) -> nn.Module:
    """The norm of a form: Flamingo's LayerNorm, Idefics2's RMSNorm."""
    if form == "flamingo":
        return nn.LayerNorm(width)
    return nn.RMSNorm(width, eps=1e-6)


class ResamplerLayer(nn.Module):
    """Pre-norm attention of latents over [patches, latents], then a feed-forward network; both residual."""

    def __init__(self, width: int, heads: int, head_dim: int, kv_heads: int | None, form: ResamplerForm):
        super().__init__()
        self.patch_norm = make_norm(width, form)
        self.latent_norm = make_norm(width, form)
        self.mlp_norm = make_norm(width, form)
        self.attention = Attention(width, width, heads, head_dim, kv_heads=kv_heads, bias=False)
        # made in both forms: without it, a seed would draw other weights for Flamingo's than it has so far
        self.mlp: nn.Module = GatedMLP(width, 4 * width, width)
        if form == "flamingo":
            self.mlp = nn.Sequential(
                nn.Linear(width, 4 * width, bias=False),
                nn.ReLU(),
                nn.Linear(4 * width, width, bias=False),
            )

    def prepare_operands(self, latents: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, Q, width) and what they read, (B, N + Q, width)."""
        query = self.latent_norm(latents)
        memory = torch.cat([self.patch_norm(patches), query], 1)
        return query, memory

    def forward(self, latents: Tensor, patches: Tensor) -> Tensor:
        query, memory = self.prepare_operands(latents, patches)
        latents = latents + self.attention(query, memory, memory)
        return latents + self.mlp(self.mlp_norm(latents))


@register("resampler")
class Resampler(Compressor):
    """`num_queries` latents of `width` (None: the tower's) in `num_layers` layers.

    form               flamingo | idefics2
    heads, head_dim    of the attention; kv_heads: heads of keys and values (None: as many)
    """

    def __init__(
        self,
        dim: int,
        *,
        form: ResamplerForm = "flamingo",
        num_queries: int = 64,
        num_layers: int = 3,
        width: int | None = None,
        heads: int = 8,
        head_dim: int = 64,
        kv_heads: int | None = None,
    ):
        super().__init__()
        check_at_least(1, num_queries=num_queries, num_layers=num_layers)
        check_choice(ResamplerForm, form=form)
        if width is None:
            width = dim
        check_at_least(1, width=width)
        self.out_dim = width
        self.num_queries = num_queries
        self.project: nn.Module = nn.Identity()
        if width != dim:
            self.project = nn.Linear(dim, width)
        self.latents = nn.Parameter(torch.empty(num_queries, width))
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            self.layers.append(ResamplerLayer(width, heads, head_dim, kv_heads, form))
        self.norm = make_norm(width, form)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Latents that differ: equal ones, as in some releases, get equal gradients."""
        nn.init.normal_(self.latents, std=0.02)

    def num_tokens(self, height: int, width: int) -> int:
        return self.num_queries

    def _prepare_states(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, Q, width) and patches (B, N, width)."""
        patches = self.project(rearrange(features, "b h w c -> b (h w) c"))
        return self.latents.expand(len(features), -1, -1), patches

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        latents, patches = self._prepare_states(features)
        for layer in self.layers:
            latents = layer(latents, patches)
        return self.norm(latents)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """What the last layer reads of the patches, the mean over its heads and latents."""
        latents, patches = self._prepare_states(features)
        for layer in self.layers[:-1]:
            latents = layer(latents, patches)
        last = self.layers[-1]
        assert isinstance(last, ResamplerLayer)  # a ModuleList does not tell
        query, memory = last.prepare_operands(latents, patches)
        weights = last.attention.weights(query, memory).mean((1, 2))
        of_patches = weights[:, : patches.shape[1]]  # the rest is what latents read of one another
        grid = rearrange(of_patches, "b (h w) -> b h w", h=features.shape[1])
        return grid / grid.sum((1, 2), keepdim=True)
