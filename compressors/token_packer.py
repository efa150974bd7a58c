"""TokenPacker, arXiv 2407.02392.

Each window's query is a bilinearly down-sampled patch; it reads the window's own patches, whose keys and
values come from several levels of the tower: coarse to fine. The query is not added to what it reads.

    query    resize - Linear - LayerNorm
    keys     levels - Linear - GELU - Linear - LayerNorm        (values likewise)
    token    attention(query, the window's keys and values) - Linear - GELU - Linear

    H*W -> (H/s) * (W/s)        576 -> 144 at s = 2
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import channels, divides
from compressors.grid import GridPolicy, WindowCompressor, fit, split_windows, unsplit, window_mask
from compressors.interpolate import resize
from compressors.layers import Attention

EPS = 1e-6


@register("token_packer")
class TokenPacker(WindowCompressor):
    """Windows of `rate` x `rate` patches, each packed into its down-sampled patch.

    levels    hidden states of the tower for keys and values; (12, 16, 22, 23) of CLIP-L's 24 as released;
              none: the tower's output
    """

    projects = True

    def __init__(
        self,
        dim: int,
        llm_dim: int,
        *,
        rate: int = 3,
        heads: int = 8,
        levels: tuple[int, ...] = (),
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid_policy)
        divides(heads, dim, ("heads", "dim"))
        self.dim, self.out_dim, self.needs_levels = dim, llm_dim, tuple(levels)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key, self.value = (
            nn.Sequential(nn.Linear(max(1, len(levels)) * dim, dim), nn.GELU(), nn.Linear(dim, dim))
            for _ in range(2)
        )
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(dim, eps=EPS) for _ in range(3))
        self.attend = Attention(dim, dim, heads, dim // heads)
        self.mlp = nn.Sequential(nn.Linear(dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))

    def _operands(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, MaybeTensor]:
        """Queries (B*h*w, 1, C), keys and values (B*h*w, s*s, C), and a mask of those that are patches."""
        channels(features, self.dim, self.needs_levels)
        grid = self.out_grid(*features.shape[1:3])
        fitted, real = fit(features, self.rate, self.grid_policy)
        coarse = fitted[..., : self.dim]
        if real is not None:  # a border is filled with the last patches, again: queries stay in their windows
            rows, columns = (
                torch.arange(n * self.rate, device=features.device).clamp(max=m - 1)
                for n, m in zip(grid, features.shape[1:3])
            )
            coarse = coarse[:, rows[:, None], columns]
        fine = fitted[..., self.dim :] if self.needs_levels else fitted
        query = self.query_norm(self.query(resize(coarse, grid, "bilinear")))
        keys = split_windows(self.key_norm(self.key(fine)), self.rate)
        values = split_windows(self.value_norm(self.value(fine)), self.rate)
        mask = window_mask(real, len(features), self.rate)
        return rearrange(query, "b h w c -> (b h w) 1 c"), keys, values, mask

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        query, keys, values, mask = self._operands(features)
        packed = self.attend(query, keys, values, mask)
        return self.mlp(rearrange(packed, "(b n) 1 c -> b n c", b=len(features)))

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """The mean over the heads."""
        query, keys, _, mask = self._operands(features)
        weights = self.attend.weights(query, keys, mask).mean(1).squeeze(1)  # (B*h*w, s*s)
        grid = tuple(features.shape[1:3])
        return unsplit(weights, grid, self.out_grid(*grid))
