"""Diversity-based selection (DivPrune), arXiv 2503.02175.

Patches are chosen one at a time: the one that is farthest, by cosine distance, from its nearest patch among
those chosen so far (the first: from its nearest of all), so that what is kept is as different as can be.

    H*W -> the tokens of `rate` x `rate` windows, in raster order        729 -> 81 at rate = 3

The released code (vbdi/divprune) compares patches behind the projector, at the LLM's width, and all crops of
an image together; here they are compared as the tower gives them, each crop by itself.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, register
from compressors.selection import SubsetCompressor, choose_in_float32


@choose_in_float32
def choose_most_diverse(tokens: Tensor, count: int) -> Tensor:
    """Indices (B, count), ascending, of greedy max-min selection among (B, N, C). Ties: the first one."""
    unit = F.normalize(tokens, dim=-1)
    distance = 1 - unit @ unit.mT  # (B, N, N)
    rows = torch.arange(len(tokens), device=tokens.device)
    alone = 3 * torch.eye(tokens.shape[1], device=tokens.device)  # no patch is its own nearest
    best = (distance + alone).amin(-1).argmax(-1)  # (B,)
    chosen = [best]
    # a chosen patch is at -inf of itself: never again, not even for a tie
    distance.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    nearest = distance[rows, best]  # (B, N): of each patch to the nearest of those chosen so far
    for _ in range(count - 1):
        best = nearest.argmax(-1)
        chosen.append(best)
        nearest = torch.minimum(nearest, distance[rows, best])
    return torch.stack(chosen, 1).sort(-1).values


@register("divprune")
class DiversePatches(SubsetCompressor):
    """The most different patches, as many as there are `rate` x `rate` windows."""

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches = rearrange(features, "b h w c -> b (h w) c")
        return choose_most_diverse(patches, self.num_tokens(*features.shape[1:3]))
