"""D-Abstractor, Honeybee, arXiv 2312.06742.

A grid of queries passes decoder layers of Deformable DETR (arXiv 2010.04159): each reads the features at a
few points around its reference point, which is learned and starts on a grid. Pooled features tell a query
what is near it, in place of a position embedding.

    queries - self-attention - deformable attention (patches) - FFN - (n times) - Linear

    H*W -> th * tw        576 -> 144 at grid = (12, 12)

The released model (repository kakaobrain/honeybee) has 6 layers, 8 heads and an FFN of 1024 channels:
num_layers=6, heads=8, mlp_width=1024. No knob changes the rest: there the Linear before and behind is left
out where widths agree, layers have dropout (0.1), and reference points start evenly from the first patch's
centre to the last one's, linspace(0.5, H - 0.5, th) / H; here at the centres of the queries' cells, (i + 0.5)
/ th.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.base import Compressor, MaybeTensor, register
from compressors.checks import check_at_least, check_grid, check_heads_divide
from compressors.constants import keep_constant
from compressors.grid import weigh_patches
from compressors.layers import Attention, initialise_parameter
from compressors.positions import LearnedPositions


def splat_samples(points: Tensor, weights: Tensor, grid: tuple[int, int]) -> Tensor:
    """What bilinear samples read: points (B, P, 2) as (x, y) in [0, 1], weights (B, P) -> (B, H, W)."""
    height, width = grid
    sizes = torch.tensor([width, height], device=points.device)
    places = points * sizes - 0.5  # a patch's centre is a whole number
    share = places - places.floor()  # what the patches to the right and below have of a sample
    corner = places.floor().long()
    read = torch.zeros(len(points), height * width, device=points.device)
    for x, y in ((0, 0), (1, 0), (0, 1), (1, 1)):
        shift = torch.tensor([x, y], device=points.device)
        patch = corner + shift
        inside = ((patch >= 0) & (patch < sizes)).all(-1)  # zeros beyond the border, as grid_sample
        amount = (shift - 1 + share).abs().prod(-1) * weights * inside
        column = patch[..., 0]
        row = patch[..., 1]
        index = (row * width + column).where(inside, 0)
        read = read.scatter_add(1, index, amount)
    return rearrange(read, "b (h w) -> b h w", h=height)


@keep_constant
def make_grid_sizes(width: int, height: int, device: torch.device) -> Tensor:
    """(2,), as x and y go. Made anew in each forward pass it would be copied from the host, which waits."""
    return torch.tensor([width, height], device=device)


class DeformableAttention(nn.Module):
    """Reads a feature map (B, H, W, D) at `num_points` learned points a head around each reference point."""

    def __init__(self, width: int, heads: int, num_points: int):
        super().__init__()
        self.heads = heads
        self.num_points = num_points
        self.offsets = nn.Linear(width, heads * num_points * 2)
        self.scores = nn.Linear(width, heads * num_points)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def reset_parameters(self) -> None:
        """Deformable DETR's: head h looks in direction h, its p-th point p patches away. Its zero weights are
        small ones here."""
        angle = torch.arange(self.heads) * (2 * math.pi / self.heads)
        direction = torch.stack([angle.cos(), angle.sin()], -1)  # (heads, 2)
        # on the unit square, not circle: the first point is one patch away, in a corner too
        direction = direction / direction.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1)
        for layer in (self.offsets, self.scores):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        offsets = torch.einsum("hx,p->hpx", direction, steps.to(direction.dtype))
        initialise_parameter(self.offsets.bias, offsets.flatten())

    def locate_samples(
        self, query: Tensor, reference: Tensor, grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Points (B, heads, Q, P, 2) as (x, y) in [0, 1], float32, and their weights (B, heads, Q, P)."""
        height, width = grid
        axes = {"m": self.heads, "p": self.num_points}
        # offsets count patches, reference points are shares of the grid
        offsets = rearrange(self.offsets(query).float(), "b q (m p x) -> b m q p x", x=2, **axes)
        sizes = make_grid_sizes(width, height, query.device)
        points = rearrange(reference.float(), "q x -> q 1 x") + offsets / sizes
        scores = rearrange(self.scores(query), "b q (m p) -> b m q p", **axes)
        return points, scores.float().softmax(-1)

    def forward(self, query: Tensor, reference: Tensor, features: Tensor) -> Tensor:
        """(B, Q, D), (Q, 2), (B, H, W, D) -> (B, Q, D)."""
        height, width = features.shape[1:3]
        points, weights = self.locate_samples(query, reference, (height, width))
        values = rearrange(self.value(features), "b h w (m d) -> (b m) d h w", m=self.heads)
        places = rearrange(2 * points - 1, "b m q p x -> (b m) q p x")
        # in float32: half precision has no 1/1000 of a grid
        read = F.grid_sample(values.float(), places, align_corners=False)  # (B*M, d, Q, P)
        mixed = (read * rearrange(weights, "b m q p -> (b m) 1 q p")).sum(-1)  # (B*M, d, Q)
        merged = rearrange(mixed, "(b m) d q -> b q (m d)", m=self.heads)
        return self.out(merged.to(query.dtype))


class DecoderLayer(nn.Module):
    """Post-norm: self-attention of the queries, deformable attention to the features, FFN with ReLU."""

    def __init__(self, width: int, heads: int, num_points: int, mlp_width: int):
        super().__init__()
        self.self_attention = Attention(width, width, heads, width // heads)
        self.deformable = DeformableAttention(width, heads, num_points)
        self.mlp = nn.Sequential(nn.Linear(width, mlp_width), nn.ReLU(), nn.Linear(mlp_width, width))
        self.self_norm = nn.LayerNorm(width)
        self.deformable_norm = nn.LayerNorm(width)
        self.mlp_norm = nn.LayerNorm(width)

    def attend_to_queries(self, x: Tensor, position: Tensor) -> Tensor:
        """The queries after self-attention, (B, Q, D)."""
        placed = x + position
        return self.self_norm(x + self.self_attention(placed, placed, x))

    def forward(self, x: Tensor, position: Tensor, reference: Tensor, features: Tensor) -> Tensor:
        x = self.attend_to_queries(x, position)
        x = self.deformable_norm(x + self.deformable(x + position, reference, features))
        return self.mlp_norm(x + self.mlp(x))


@register("d_abstractor")
class DAbstractor(Compressor):
    """A `grid` of queries of `width` in `num_layers` decoder layers; released: 6, 8 heads, `mlp_width` 1024.

    num_points    that a head reads of the features
    mlp_width     of the FFN; None: four times `width`
    positions     grid of the features' learned positions, resized to other patch grids
    """

    projects = True

    def __init__(
        self,
        dim: int,
        llm_dim: int,
        *,
        grid: tuple[int, int] = (9, 9),
        width: int = 1024,
        num_layers: int = 2,
        heads: int = 16,
        num_points: int = 4,
        mlp_width: int | None = None,
        positions: tuple[int, int] = (24, 24),
    ):
        super().__init__()
        if mlp_width is None:
            mlp_width = 4 * width
        check_at_least(1, num_layers=num_layers, num_points=num_points, mlp_width=mlp_width)
        check_heads_divide(heads, width)
        self.out_dim = llm_dim
        self.grid = check_grid(grid)
        num_queries = self.grid[0] * self.grid[1]
        self.project = nn.Linear(dim, width)
        self.out = nn.Linear(width, llm_dim)
        self.positions = LearnedPositions(check_grid(positions, "positions"), width)
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.reference = nn.Parameter(torch.empty(num_queries, 2))  # (x, y) in [0, 1]
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            self.layers.append(DecoderLayer(width, heads, num_points, mlp_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reference points at the centres of the grid's cells, heads looking around them."""
        nn.init.normal_(self.queries, std=0.02)
        for layer in self.layers:  # from here: transformers asks no module without parameters of its own
            assert isinstance(layer, DecoderLayer)  # a ModuleList does not tell
            layer.deformable.reset_parameters()
        height, width = self.grid
        rows = (torch.arange(height) + 0.5) / height
        columns = (torch.arange(width) + 0.5) / width
        centres = torch.cartesian_prod(rows, columns)  # (Q, 2) as (y, x)
        initialise_parameter(self.reference, centres.flip(-1))

    def out_grid(self, height: int, width: int) -> tuple[int, int]:
        return self.grid

    def _prepare_states(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and what is near them, (B, Q, width) each, and the features (B, H, W, width)."""
        projected = self.positions(self.project(features))
        near = F.adaptive_avg_pool2d(rearrange(projected, "b h w d -> b d h w"), self.grid)
        queries = self.queries.expand(len(features), -1, -1)
        return queries, rearrange(near, "b d h w -> b (h w) d"), projected

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        queries, near, projected = self._prepare_states(features)
        for layer in self.layers:
            queries = layer(queries, near, self.reference, projected)
        return self.out(queries)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """The points that the last layer reads, by their weights."""
        height, width = features.shape[1:3]
        queries, near, projected = self._prepare_states(features)
        for layer in self.layers[:-1]:
            queries = layer(queries, near, self.reference, projected)
        last = self.layers[-1]
        assert isinstance(last, DecoderLayer)  # a ModuleList does not tell
        placed = last.attend_to_queries(queries, near) + near
        points, weights = last.deformable.locate_samples(placed, self.reference, (height, width))
        points = rearrange(points, "b m q p x -> b (m q p) x")
        weights_of_patches = splat_samples(points, weights.flatten(1), (height, width))
        return weigh_patches(weights_of_patches, height, width)
