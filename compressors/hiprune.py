"""HiPrune, arXiv 2508.00553 (repository Danielement321/HiPrune): training-free, and without a CLS token.

What all tokens pay a patch on average tells objects in a middle block of the tower, and what stands for the
whole image in the block whose output is used.

    anchors     the patches that receive most in `block`, a fifth of the share `anchors` of the tokens
    buffers     the four neighbours of each anchor
    registers   of all other patches those that receive most in the last block, as many as are left

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64, at most 5 + 59

`block` counts as `select_layer` does; the paper's is the ninth of CLIP's 24. In the released code grids have
24 columns and an anchor at the end of a row has a neighbour in the next one; here it has three. Where a
budget is too small for anchors (a fifth of the share rounds to none), registers are all.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_block, check_share
from compressors.cues import split_patches
from compressors.grid import GridPolicy
from compressors.selection import SubsetCompressor, choose_by_class, choose_largest

CROSS = 5  # an anchor and its neighbours


def mark_places(places: Tensor, height: int, width: int) -> Tensor:
    """Raster indices (B, M) -> (B, H, W), True at these."""
    marks = torch.zeros(len(places), height * width, dtype=torch.bool, device=places.device)
    return rearrange(marks.scatter(1, places, True), "b (h w) -> b h w", h=height)


def mark_neighbours(marks: Tensor) -> Tensor:
    """(B, H, W) -> True above, below, left and right of what is True."""
    padded = F.pad(marks, (1, 1, 1, 1))
    is_below_a_mark = padded[:, :-2, 1:-1]
    is_above_a_mark = padded[:, 2:, 1:-1]
    is_right_of_a_mark = padded[:, 1:-1, :-2]
    is_left_of_a_mark = padded[:, 1:-1, 2:]
    return is_below_a_mark | is_above_a_mark | is_right_of_a_mark | is_left_of_a_mark


@register("hiprune")
class HiPrune(SubsetCompressor):
    """As many patches as `rate` x `rate` windows or `tokens`, up to the share `anchors` of them by what is
    received in `block` with neighbours, the others by what is received in the last block."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        block: int = 9,
        anchors: float = 0.1,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(dim, rate=rate, tokens=tokens, grid_policy=grid_policy, positions=positions)
        check_block(block)
        check_share(anchors=anchors)
        self.anchors = anchors
        self.needs_cues = (f"received:{block}", "received")

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        _, cues = split_patches(features, self.out_dim, self.needs_cues)
        middle, last = (cues[cue] for cue in self.needs_cues)  # (B, H * W)
        count = self.num_tokens(height, width)
        anchors = choose_largest(middle, round(count * self.anchors / CROSS))
        is_anchor = mark_places(anchors, height, width)
        # where anchors and buffers are more than the budget, buffers go first
        classes = 2 * is_anchor.long() + mark_neighbours(is_anchor)
        return choose_by_class(last, classes.clamp(max=2).flatten(1), count)
