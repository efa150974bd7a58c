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
from compressors.checks import check_channels, check_heads_divide
from compressors.grid import (
    GridPolicy,
    WindowCompressor,
    fit_to_windows,
    make_window_mask,
    split_windows,
)
from compressors.interpolate import resize_grid
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
        check_heads_divide(heads, dim, ("heads", "dim"))
        self.dim = dim
        self.out_dim = llm_dim
        self.needs_levels = tuple(levels)
        fine_dim = max(1, len(levels)) * dim  # without levels keys and values read the tower's output
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Sequential(nn.Linear(fine_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.value = nn.Sequential(nn.Linear(fine_dim, dim), nn.GELU(), nn.Linear(dim, dim))
        self.query_norm = nn.LayerNorm(dim, eps=EPS)
        self.key_norm = nn.LayerNorm(dim, eps=EPS)
        self.value_norm = nn.LayerNorm(dim, eps=EPS)
        self.attend = Attention(dim, dim, heads, dim // heads)
        self.mlp = nn.Sequential(nn.Linear(dim, llm_dim), nn.GELU(), nn.Linear(llm_dim, llm_dim))

    def _prepare_operands(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor, MaybeTensor]:
        """Queries (B*h*w, 1, C), keys and values (B*h*w, s*s, C), and a mask of those that are patches."""
        check_channels(features, self.dim, self.needs_levels)
        height, width = features.shape[1:3]
        grid = self.count_windows(height, width)
        fitted, real = fit_to_windows(features, self.rate, self.grid_policy)
        coarse = fitted[..., : self.dim]
        if real is not None:
            # `ceil` filled the border with zeros: the last patches stand there again, so that the
            # down-sampled query of a ragged window is made of that window's patches alone
            window_rows, window_columns = grid
            rows = torch.arange(window_rows * self.rate, device=features.device).clamp(max=height - 1)
            columns = torch.arange(window_columns * self.rate, device=features.device).clamp(max=width - 1)
            coarse = coarse[:, rows[:, None], columns]
        fine = fitted
        if self.needs_levels:
            fine = fitted[..., self.dim :]
        query = self.query_norm(self.query(resize_grid(coarse, grid, "bilinear")))
        keys = split_windows(self.key_norm(self.key(fine)), self.rate)
        values = split_windows(self.value_norm(self.value(fine)), self.rate)
        mask = make_window_mask(real, len(features), self.rate)
        return rearrange(query, "b h w c -> (b h w) 1 c"), keys, values, mask

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        query, keys, values, mask = self._prepare_operands(features)
        packed = self.attend(query, keys, values, mask)
        count = self.num_tokens(*features.shape[1:3])
        return self.mlp(rearrange(packed, "(b n) 1 c -> b n c", n=count))

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        query, keys, _, mask = self._prepare_operands(features)
        return self.weigh_windows(self.attend.weights(query, keys, mask), features)
