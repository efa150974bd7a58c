"""Resampler with two-dimensional positions, Qwen-VL, arXiv 2308.12966; also MiniCPM-V, arXiv 2408.01800.

A grid of learned queries reads the patches in one cross-attention. Queries and keys carry 2-D sine-cosine
positions in the same coordinates, so that a query knows its place in the picture, whatever the patch grid.

    H*W -> th * tw        1024 -> 256 in Qwen-VL (16 x 16), 64 in MiniCPM-V (8 x 8)
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.base import Compressor, MaybeTensor, register
from compressors.checks import check_grid, check_heads_divide
from compressors.constants import keep_constant
from compressors.errors import UsageError
from compressors.layers import Attention
from compressors.positions import encode_grid


def place_patches(count: int, size: int, device: torch.device) -> Tensor:
    """Where `size` patches lie on an axis of `count` queries, which lie at 0, 1, 2, ..."""
    return (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (count / size) - 0.5


@keep_constant
def encode_places(
    rows: int, columns: int, height: int, width: int, channels: int, device: torch.device
) -> Tensor:
    """Positions (height * width, channels) of a grid of that size laid over one of queries."""
    down = place_patches(rows, height, device)
    across = down
    if (columns, width) != (rows, height):
        across = place_patches(columns, width, device)
    return encode_grid(down, across, channels).flatten(0, 1)


@register("resampler_2d")
class Resampler2d(Compressor):
    """A `grid` of queries of `width` (None: the tower's), which must be a multiple of 4."""

    def __init__(self, dim: int, *, grid: tuple[int, int] = (9, 9), width: int | None = None, heads: int = 8):
        super().__init__()
        if width is None:
            width = dim
        check_heads_divide(heads, width)
        if width % 4:
            raise UsageError(f"width={width}: must be a multiple of 4, for sines and cosines of two axes")
        self.out_dim = width
        self.grid = check_grid(grid)
        rows, columns = self.grid
        self.queries = nn.Parameter(torch.empty(rows * columns, width))
        self.project: nn.Module = nn.Identity()
        if width != dim:
            self.project = nn.Linear(dim, width, bias=False)
        self.query_norm = nn.LayerNorm(width, eps=1e-6)
        self.patch_norm = nn.LayerNorm(width, eps=1e-6)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.attend = Attention(width, width, heads, width // heads)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.queries, std=0.02)

    def out_grid(self, height: int, width: int) -> tuple[int, int]:
        return self.grid

    def _encode_places(self, height: int, width: int, features: Tensor) -> Tensor:
        """Positions (height * width, out_dim) of a grid of that size laid over the queries' grid."""
        places = encode_places(*self.grid, height, width, self.out_dim, features.device)
        return places.to(features.dtype)

    def _prepare_operands(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, Q, width), keys and values (B, N, width)."""
        height, width = features.shape[1:3]
        patches = self.project(rearrange(features, "b h w c -> b (h w) c"))
        patches = self.patch_norm(patches)
        queries = self.query_norm(self.queries) + self._encode_places(*self.grid, features)
        keys = patches + self._encode_places(height, width, features)
        return queries.expand(len(features), -1, -1), keys, patches

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        queries, keys, values = self._prepare_operands(features)
        return self.norm(self.attend(queries, keys, values))

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """The mean over heads and queries."""
        queries, keys, _ = self._prepare_operands(features)
        weights = self.attend.weights(queries, keys).mean((1, 2))
        return rearrange(weights, "b (h w) -> b h w", h=features.shape[1])
