"""VisionZip, arXiv 2412.04467 (repository dvlab-research/VisionZip): training-free.

Dominant tokens are the patches that the tower's own attention looks at, as they are. Of all others, in raster
order, every n-th is a target; each one that is left goes to the target whose key is most like its own, and a
contextual token is a target plus the mean of what went to it.

    H*W -> dominant ones in raster order, then contextual ones, `context` of all       576 -> 54 + 10

The paper's dominant tokens are CLS and the patches to which CLS pays most in the block whose output is used,
CLS one of the count. `cls=false`, our default, keeps CLS out, so that all tokens are patches and towers
without CLS (SigLIP) have the same count; there what a patch receives on average stands for what CLS pays it.
The sum of target and mean is about twice as long as a patch, as in the released code.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor, Positions, register
from compressors.checks import check_share
from compressors.cues import split_patches
from compressors.grid import BudgetCompressor, GridPolicy
from compressors.selection import choose_in_float32, choose_largest, list_others, share_patches


@choose_in_float32
def assign_by_keys(keys: Tensor, targets: Tensor) -> Tensor:
    """To which of the targets (M,), places among them, each of keys (B, R, d) goes, (B, R)."""
    unit = F.normalize(keys, dim=-1)
    return (unit @ unit[:, targets].mT).argmax(-1)


def space_evenly(others: Tensor, count: int) -> Tensor:
    """Places (count,) among `others` (B, R), evenly spaced."""
    step = others.shape[1] // max(1, count)
    return step * torch.arange(count, device=others.device)


@register("visionzip")
class VisionZip(BudgetCompressor):
    """As many tokens as `rate` x `rate` windows or `tokens`, the share `context` of them contextual; with
    `cls` the first is the tower's CLS."""

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        context: float = 10 / 64,
        cls: bool = False,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy, tokens, positions)
        check_share(context=context)
        self.out_dim = dim
        self.context = context
        self.cls = cls
        self.needs_cues = ("attention", "keys", "cls") if cls else ("attention", "keys")

    def count_parts(self, height: int, width: int) -> tuple[int, int]:
        """How many tokens are dominant, CLS among them, and how many contextual."""
        count = self.num_tokens(height, width)
        contextual = min(round(self.context * count), count - 1)  # one is dominant at least
        return count - contextual, contextual

    def _split_patches(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        """Patches (B, N, C), the cues, and the places of the dominant ones (B, d) and of all others."""
        height, width = features.shape[1:3]
        patches, cues = split_patches(features, self.out_dim, self.needs_cues)
        dominant_count, _ = self.count_parts(height, width)
        dominant = choose_largest(cues["attention"], dominant_count - int(self.cls))
        return patches, cues, dominant, list_others(dominant, height * width)

    def _merge_others(self, keys: Tensor, others: Tensor, count: int) -> Tensor:
        """What `count` contextual tokens have of the patches at `others` (B, R): weights (B, count, R)."""
        remaining = others.shape[1]
        targets = space_evenly(others, count)
        other_keys = torch.take_along_dim(keys, others.unsqueeze(-1), 1)
        group = assign_by_keys(other_keys, targets)  # (B, R)
        is_target = torch.zeros(remaining, dtype=torch.bool, device=keys.device)
        is_target[targets] = True
        members = F.one_hot(group, count).mT.float().masked_fill(is_target, 0)  # (B, count, R)
        means = members / members.sum(-1, keepdim=True).clamp(min=1)
        return means + F.one_hot(targets, remaining)

    def _make_weights(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Patches (B, N, C), the cues, and what each token but CLS has of the patches, (B, M, N)."""
        height, width = features.shape[1:3]
        patches, cues, dominant, other_places = self._split_patches(features)
        _, contextual = self.count_parts(height, width)
        count = height * width
        dominant_weights = F.one_hot(dominant, count).float()
        if not contextual:
            return patches, cues, dominant_weights
        shares = self._merge_others(cues["keys"], other_places, contextual)
        context_weights = torch.zeros(len(patches), contextual, count, device=patches.device)
        places = other_places.unsqueeze(1).expand(-1, contextual, -1)
        context_weights = context_weights.scatter(2, places, shares)
        return patches, cues, torch.cat([dominant_weights, context_weights], 1)

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches, cues, weights = self._make_weights(features)
        tokens = (weights @ patches.float()).to(patches.dtype)
        if self.cls:
            tokens = torch.cat([cues["cls"].unsqueeze(1), tokens], 1)
        return tokens

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, _, dominant, other_places = self._split_patches(features)
        _, contextual = self.count_parts(*features.shape[1:3])
        targets = other_places[:, space_evenly(other_places, contextual)]
        cls_places = torch.full((len(features), int(self.cls)), -1, device=features.device)
        return torch.cat([cls_places, dominant, targets], 1)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        _, cues, weights = self._make_weights(features)
        if not weights.shape[1]:  # CLS alone: what it has of the patches is what it pays them
            weights = cues["attention"].float().unsqueeze(1)
        return share_patches(weights, features.shape[1])
