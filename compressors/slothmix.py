"""SlothMix, SlothKit's own: slow to let go of a patch, it mixes neighbours before anything is left out.

A trunk lets every patch look at its neighbours. Patches are then put into groups, one for each token, and a
token is what several attention heads, each with weights and channels of its own, read of the trunk's output
in its group, on top of the group's raw features under the heads' mean weights.

    trunk    Linear - GELU - LDP's residual (arXiv 2312.16886) x depth
    diverse  a group is what is nearest to one of the patches that DivPrune (arXiv 2503.02175) would keep;
             such tokens have no order, so each is told where that patch lies
    windows  groups are the cells of a grid, as in SAP (arXiv 2412.04317); better where few tokens are left

    H*W -> ceil(H/k) * ceil(W/k), or any th * tw        729 -> 81 at k = 3
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_at_least, check_choice, check_heads_divide
from compressors.divprune import choose_most_diverse
from compressors.grid import GridPolicy, ResizingCompressor, weigh_patches
from compressors.ldp import InvertedResidual
from compressors.positions import encode_grid
from compressors.selection import choose_in_float32

Groups = Literal["diverse", "windows"]
DISTANCE_COST = 0.05  # of cosine similarity, for each patch of distance; from trials at the preset tiny
CODE_WIDTH = 64  # channels of a position's sines and cosines


@choose_in_float32
def group_by_nearest(patches: Tensor, chosen: Tensor, places: Tensor) -> Tensor:
    """To which of the chosen, (B, M), each of the patches (B, N, C) at `places` (N, 2) goes, (B, N)."""
    unit = F.normalize(patches, dim=-1)
    similarity = torch.take_along_dim(unit, chosen.unsqueeze(-1), 1) @ unit.mT  # (B, M, N)
    nearness = similarity - DISTANCE_COST * torch.cdist(places, places)[chosen]
    # a chosen patch stays with itself, even one of zeros, which is like nothing: no group is empty
    return nearness.scatter(-1, chosen.unsqueeze(-1), torch.inf).argmax(1)


@register("slothmix")
class SlothMix(ResizingCompressor):
    """A trunk of `depth` residuals at `width` channels (None: the tower's), then attention of `heads` in
    `groups`, as many as `rate` x `rate` windows or `grid` cells; no `grid_policy` leaves a patch out."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        grid: tuple[int, int] | None = None,
        groups: Groups = "diverse",
        width: int | None = None,
        depth: int = 2,
        heads: int = 8,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid, grid_policy)
        width = dim if width is None else width
        check_choice(Groups, groups=groups)
        check_at_least(0, depth=depth)
        check_heads_divide(heads, width)
        self.out_dim, self.groups, self.heads = dim, groups, heads
        self.raster_order = groups == "diverse"  # of the patches that the groups are gathered around
        residuals = [InvertedResidual(width, 1) for _ in range(depth)]
        self.trunk = nn.Sequential(nn.Linear(dim, width), nn.GELU(), *residuals)
        self.scorer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, heads))
        self.merge = nn.Linear(width, dim)
        self.position = nn.Linear(CODE_WIDTH, dim, bias=False) if groups == "diverse" else None

    def out_grid(self, height: int, width: int) -> tuple[int, int] | None:
        return self.count_cells(height, width) if self.groups == "windows" else None

    def num_tokens(self, height: int, width: int) -> int:
        return math.prod(self.count_cells(height, width))

    def _read_groups(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, M, C), and the heads' mean weights (B, M, H', W') of patches, filled up under `pad`."""
        rows, columns = self.count_cells(*features.shape[1:3])  # refuses what the policy refuses
        features = self.fill_windows(features)
        height, width = features.shape[1:3]
        down = torch.arange(height, device=features.device)
        across = torch.arange(width, device=features.device)
        patches = rearrange(features, "b h w c -> b (h w) c")
        if self.position is None:
            cell_row = down * rows // len(down)
            cell_column = across * columns // len(across)
            group = (cell_row.unsqueeze(1) * columns + cell_column).flatten().unsqueeze(0)  # (1, N)
        else:
            chosen = choose_most_diverse(patches, rows * columns)  # (B, M)
            group = group_by_nearest(patches, chosen, torch.cartesian_prod(down, across).float())
        members = group.unsqueeze(1) == torch.arange(rows * columns, device=features.device).unsqueeze(1)

        mixed = rearrange(self.trunk(features), "b h w d -> b (h w) d")
        # in half precision a softmax of nine nearly equal logits loses what tells them apart
        scores = rearrange(self.scorer(mixed).float(), "b n k -> b k 1 n")
        weights = scores.masked_fill(~members.unsqueeze(1), -torch.inf).softmax(-1)  # (B, heads, M, N)
        values = rearrange(mixed, "b n (k d) -> b k n d", k=self.heads)
        read = rearrange(weights.to(mixed.dtype) @ values, "b k m d -> b m (k d)")
        weights = weights.mean(1)
        tokens = weights.to(patches.dtype) @ patches + self.merge(read)
        if self.position is not None:
            codes = encode_grid(down, across, CODE_WIDTH).flatten(0, 1).to(tokens.dtype)
            tokens = tokens + self.position(codes)[chosen]
        return tokens, rearrange(weights, "b m (h w) -> b m h w", w=len(across))

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        return self._read_groups(features)[0]

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, weights = self._read_groups(features)
        return weigh_patches(weights.mean(1), *features.shape[1:3])
