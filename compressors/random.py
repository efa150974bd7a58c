"""A random subset of the patches, as many as k x k windows would leave: the floor under every selection.

    H*W -> (H/k) * (W/k), any patches, in raster order        729 -> 81 at k = 3

Training draws afresh for every image from torch's global generator; evaluation keeps one subset for each
grid, given by `seed`, so that it does not depend on the batch or on what ran before.
"""

import torch
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_at_least
from compressors.grid import GridPolicy
from compressors.selection import SubsetCompressor


@torch.compiler.assume_constant_result
def make_fixed_order(count: int, seed: int) -> list[int]:
    """A permutation of `count` patches that depends on nothing else, not on the global generator."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator, device="cpu").tolist()


@register("random")
class RandomSubset(SubsetCompressor):
    """Random patches, one for each `rate` x `rate` window's worth."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        seed: int = 0,
        tokens: int | float | None = None,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(dim, rate=rate, tokens=tokens, grid_policy=grid_policy, positions=positions)
        check_at_least(0, seed=seed)
        self.seed = seed

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        batch, height, width = features.shape[:3]
        count = self.num_tokens(height, width)
        if self.training:
            # the order of random numbers is a random order, of its own for each image
            order = torch.rand(batch, height * width, device=features.device).argsort(-1)
        else:
            order = torch.tensor(make_fixed_order(height * width, self.seed), device=features.device)
        chosen = order.expand(batch, -1)[:, :count]
        return chosen.sort(-1).values
