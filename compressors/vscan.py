"""VScan, arXiv 2505.22654 (repository Tencent/SelfEvolvingAgent), its stage in the tower: training-free.

A part of the tokens, the share `local`, are chosen in windows: of each the patches to which CLS pays most
in an early `block`. The others are those to which it pays most in the block whose output is used. Each patch
that is left goes to the chosen one that is most like it, and a token is the mean of all that it has.

    H*W -> the tokens of `rate` x `rate` windows, in raster order        576 -> 64, 16 * 2 + 32

`block` counts as `select_layer` does; the paper's is the sixth of CLIP's 24. The released code keeps fewer
tokens where windows do not share theirs evenly, here the others are chosen from the whole image; it merges
behind the projector, here patches are merged before it. The paper's second stage ranks tokens behind a layer
of the LLM: a pruner. In a tower without CLS (SigLIP) what a patch receives stands for what CLS pays it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_at_least, check_block, check_share
from compressors.cues import split_patches
from compressors.grid import BudgetCompressor, GridPolicy
from compressors.selection import choose_by_class, choose_in_float32, rank_in_groups, share_patches


def number_windows(height: int, width: int, windows: int, device: torch.device) -> Tensor:
    """The window of each patch, (H * W,): `windows` rows and columns of them, as even as can be."""
    axes = []
    for size in (height, width):
        places = torch.arange(size, device=device)
        axes.append(places * min(windows, size) // size)
    rows, columns = axes
    return (rows[:, None] * min(windows, width) + columns).flatten()


@choose_in_float32
def assign_to_kept(patches: Tensor, kept: Tensor) -> Tensor:
    """To which of the places `kept` (B, M) each of the patches (B, N, C) goes, (B, N) in 0 .. M - 1; a kept
    one to itself. Ties: the first one."""
    unit = F.normalize(patches, dim=-1)
    similarity = unit @ torch.take_along_dim(unit, kept.unsqueeze(-1), 1).mT  # (B, N, M)
    own_numbers = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
    return similarity.argmax(-1).scatter(1, kept, own_numbers)


@register("vscan")
class VScan(BudgetCompressor):
    """As many tokens as `rate` x `rate` windows or `tokens`, the share `local` of them by attention in
    `block` inside `windows` x `windows` windows; all other patches are merged into them."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        block: int = 6,
        local: float = 0.5,
        windows: int = 4,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy, tokens, positions)
        check_block(block)
        check_share(local=local)
        check_at_least(1, windows=windows)
        self.out_dim = dim
        self.local = local
        self.windows = windows
        self.needs_cues = (f"attention:{block}", "attention")

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        height, width = features.shape[1:3]
        _, cues = split_patches(features, self.out_dim, self.needs_cues)
        early, last = (cues[cue] for cue in self.needs_cues)
        count = self.num_tokens(height, width)
        window_of_patch = number_windows(height, width, self.windows, features.device)
        window_count = min(self.windows, height) * min(self.windows, width)
        in_each = int(count * self.local) // window_count
        is_local = rank_in_groups(early, window_of_patch, window_count) < in_each
        return choose_by_class(last, is_local.long(), count)

    def _make_weights(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, N, C) and what each token has of them, (B, M, N), a token's sum 1."""
        patches, _ = split_patches(features, self.out_dim, self.needs_cues)
        token_places = self.kept(features)
        group = assign_to_kept(patches, token_places)
        members = F.one_hot(group, token_places.shape[1]).mT.float()
        return patches, members / members.sum(-1, keepdim=True)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, weights = self._make_weights(features)
        return (weights @ patches.float()).to(patches.dtype)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, weights = self._make_weights(features)
        return share_patches(weights, features.shape[1])
