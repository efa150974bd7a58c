"""SlothMix, SlothKit's own: slow to let go of a patch, it mixes neighbours before anything is left out.

A narrow trunk lets each patch look at its neighbours. Then patches are put into groups, one for each token,
and a token is what the attention of several heads, each with weights and channels of its own, reads in its
group, beside the mean of the group's raw features under the same weights.

    trunk:   Linear - GELU - residual(stride 1) x depth                            on all patches
    token:   sum of a_p x_p + Linear(sum of a_p y_p by heads)                      x raw, y from the trunk
    groups:  windows   cells of a grid, as in SAP (arXiv 2412.04317)
             diverse   the patches nearest to each of the most diverse ones, which DivPrune (arXiv 2503.02175)
                       would keep; as such tokens have no order, each is told where its patch lies

    H*W -> ceil(H/k) * ceil(W/k), or any th * tw        729 -> 81 at rate = 3

The residual is that of LDP (arXiv 2312.16886).
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_at_least, check_choice, check_grid, check_heads_divide
from compressors.divprune import choose_most_diverse
from compressors.grid import GridPolicy, WindowCompressor, check_pooled_grid, fit_to_windows, weigh_patches
from compressors.ldp import InvertedResidual
from compressors.positions import encode_grid
from compressors.selection import choose_in_float32

Groups = Literal["windows", "diverse"]
DISTANCE_COST = 0.05  # cosine similarity that one patch of distance outweighs; from trials at the tiny preset
POSITION_WIDTH = 64  # channels of sines and cosines, for towers of any width


def mark_cells(length: int, cells: int, device: torch.device) -> Tensor:
    """Which of `length` places are in which of `cells` equal stretches, (cells, length) bool; where they do
    not divide it neighbours share a place, as in adaptive pooling."""
    cell = torch.arange(cells, device=device).unsqueeze(1)
    place = torch.arange(length, device=device)
    begins = cell * length // cells
    ends = ((cell + 1) * length + cells - 1) // cells  # rounded up
    return (begins <= place) & (place < ends)


def mark_windows(height: int, width: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Which patches are in which cell of `grid`, (1, M, H * W) bool, both row-major."""
    rows = mark_cells(height, grid[0], device)
    columns = mark_cells(width, grid[1], device)
    members = rows[:, None, :, None] & columns[None, :, None, :]  # (th, tw, H, W)
    return rearrange(members, "m n h w -> 1 (m n) (h w)")


@choose_in_float32
def mark_nearest(patches: Tensor, chosen: Tensor, columns: int) -> Tensor:
    """Which of the patches (B, N, C) of a grid go to which chosen one, (B, M) -> (B, M, N) bool: to that of the
    highest cosine similarity less `DISTANCE_COST` a patch of distance."""
    unit = F.normalize(patches, dim=-1)
    similarity = torch.take_along_dim(unit, chosen.unsqueeze(-1), 1) @ unit.mT
    index = torch.arange(patches.shape[1], device=patches.device)
    places = torch.stack([index // columns, index % columns], -1).float()
    likeness = similarity - DISTANCE_COST * torch.cdist(places, places)[chosen]
    # a chosen patch is in its own group, even one of zeros, which is like nothing: no group is empty
    likeness = likeness.scatter(-1, chosen.unsqueeze(-1), torch.inf)
    tokens = torch.arange(chosen.shape[1], device=patches.device).unsqueeze(-1)
    return likeness.argmax(1, keepdim=True) == tokens


@register("slothmix")
class SlothMix(WindowCompressor):
    """Mixes neighbours at `width` channels (None: the tower's) in `depth` residuals, then reads each of the
    `groups`, as many as `grid` or `rate` x `rate` windows, by attention with `heads` heads."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        grid: tuple[int, int] | None = None,
        groups: Groups = "windows",
        width: int | None = None,
        depth: int = 2,
        heads: int = 8,
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid_policy)
        width = dim if width is None else width
        check_choice(Groups, groups=groups)
        check_at_least(0, depth=depth)
        check_heads_divide(heads, width)
        self.out_dim = dim
        self.grid = grid if grid is None else check_grid(grid)
        self.groups = groups
        self.heads = heads
        residuals = [InvertedResidual(width, 1) for _ in range(depth)]
        self.trunk = nn.Sequential(nn.Linear(dim, width), nn.GELU(), *residuals)
        self.scorer = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, heads))
        self.merge = nn.Linear(width, dim)
        if groups == "diverse":
            self.position = nn.Linear(POSITION_WIDTH, dim, bias=False)

    def _count_grid(self, height: int, width: int) -> tuple[int, int]:
        """Two numbers whose product is how many tokens there are."""
        if self.grid is not None:
            return check_pooled_grid(self.grid, height, width)
        return self.count_windows(height, width)

    def out_grid(self, height: int, width: int) -> tuple[int, int] | None:
        return self._count_grid(height, width) if self.groups == "windows" else None

    def num_tokens(self, height: int, width: int) -> int:
        rows, columns = self._count_grid(height, width)
        return rows * columns

    def _read_groups(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, M, C), and the heads' mean weights of the patches, filled up under `pad`, (B, M, H', W')."""
        grid = self._count_grid(*features.shape[1:3])  # refuses what the policy refuses
        if self.grid is None and self.grid_policy == "pad":
            features, _ = fit_to_windows(features, self.rate, "pad")
        height, width = features.shape[1:3]
        patches = rearrange(features, "b h w c -> b (h w) c")
        mixed = self.trunk(features)
        if self.groups == "diverse":
            chosen = choose_most_diverse(patches, grid[0] * grid[1])  # (B, M)
            members = mark_nearest(patches, chosen, width)
        else:
            members = mark_windows(height, width, grid, features.device)

        # in half precision a softmax of nine nearly equal logits loses what tells them apart
        scores = rearrange(self.scorer(mixed).float(), "b h w k -> b k 1 (h w)")
        weights = scores.masked_fill(~members.unsqueeze(1), -torch.inf).softmax(-1)  # (B, heads, M, N)
        mean_weights = weights.mean(1)
        by_head = rearrange(mixed, "b h w (k d) -> b k (h w) d", k=self.heads)
        read = rearrange(weights.to(mixed.dtype) @ by_head, "b k m d -> b m (k d)")
        tokens = mean_weights.to(patches.dtype) @ patches + self.merge(read)
        if self.groups == "diverse":
            places = encode_grid(
                *(torch.arange(side, device=features.device) for side in (height, width)), POSITION_WIDTH
            )
            codes = rearrange(places, "h w c -> (h w) c").to(tokens.dtype)
            tokens = tokens + self.position(codes)[chosen]
        return tokens, rearrange(mean_weights, "b m (h w) -> b m h w", h=height)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        return self._read_groups(features)[0]

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, weights = self._read_groups(features)
        return weigh_patches(weights.mean(1), *features.shape[1:3])
