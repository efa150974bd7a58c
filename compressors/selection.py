"""What the methods that choose or merge patches share: choices are made in float32, and carry no gradient."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.amp import is_autocast_available

from compressors.base import MaybeTensor, Positions
from compressors.errors import UsageError
from compressors.grid import BudgetCompressor, GridPolicy

Choice = TypeVar("Choice")


def without_autocast(device: str) -> AbstractContextManager:
    """In which operations on a device of this type keep their tensors' precision."""
    if not is_autocast_available(device):  # the meta device has no autocast
        return nullcontext()
    return torch.autocast(device, enabled=False)


def choose_in_float32(function: Callable[..., Choice]) -> Callable[..., Choice]:
    """Decorator of a function of tokens (B, N, C), or scores: it sees them in float32, without autocast or
    gradient.

    Scores in half precision tie by the dozen, and a tie is decided by order, not by merit.
    """

    @wraps(function)
    def chosen(tokens: Tensor, *arguments: object) -> Choice:
        with torch.no_grad(), without_autocast(tokens.device.type):
            return function(tokens.float(), *arguments)

    return chosen


@choose_in_float32
def choose_largest(scores: Tensor, count: int) -> Tensor:
    """Places (B, count), ascending, of the largest of scores (B, N). Ties: the first one."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values


@choose_in_float32
def choose_by_class(scores: Tensor, classes: Tensor, count: int) -> Tensor:
    """Places (B, count), ascending, of those of the highest classes (B, N), in a class of the largest scores
    (B, N). Ties: the first one."""
    by_score = scores.argsort(dim=-1, descending=True, stable=True)
    by_class = classes.gather(1, by_score).argsort(dim=-1, descending=True, stable=True)
    return by_score.gather(1, by_class)[:, :count].sort(-1).values


@choose_in_float32
def rank_in_groups(scores: Tensor, groups: Tensor, group_count: int) -> Tensor:
    """The rank of each of scores (B, N) in its group, 0 the largest. groups (N,), or (B, N) where each row
    has its own: 0 .. group_count - 1. Ties: the first one."""
    groups = groups.expand_as(scores)
    by_score = scores.argsort(dim=-1, descending=True, stable=True)
    by_group = groups.gather(1, by_score).argsort(dim=-1, stable=True)
    order = by_score.gather(1, by_group)  # (B, N), a group behind the other
    sizes = F.one_hot(groups, group_count).sum(1)
    starts = sizes.cumsum(1) - sizes  # (B, group_count)
    places = torch.arange(groups.shape[1], device=scores.device)
    ranks = places - starts.gather(1, groups.gather(1, order))
    return torch.zeros_like(ranks).scatter(1, order, ranks)


def fill_room(shares: Tensor, limits: Tensor, order: Tensor, count: int) -> Tensor:
    """Shares (B, G) filled up to `count` in all, each to its limit (B, G), in this order of groups (B, G)."""
    room = (limits - shares).gather(1, order)
    missing = count - shares.sum(-1, keepdim=True)
    filled = torch.minimum((missing - room.cumsum(-1) + room).clamp(min=0), room)
    return shares + torch.zeros_like(filled).scatter(1, order, filled)


def share_patches(weights: Tensor, height: int) -> Tensor:
    """What each token has of the patches (B, M, N) -> what all have together (B, H, W), an image's sum 1."""
    per_patch = weights.sum(1)  # (B, N)
    shares = per_patch / per_patch.sum(1, keepdim=True)
    return rearrange(shares, "b (h w) -> b h w", h=height)


@choose_in_float32
def cover_targets(coverage: Tensor, weights: MaybeTensor, count: int, least: float | None = None) -> Tensor:
    """Indices (B, count), ascending, of greedy maximum coverage among N candidates: one after the other that
    by which the targets gain most, each target having what the best candidate chosen so far gives it.

    coverage (B, N, T): what each gives the targets; weights (B, N) of the candidates' gains. least: the share
    of what all candidates give together that is enough, so that -1 stands last in the place of further ones.
    Ties: the first one."""
    rows = torch.arange(len(coverage), device=coverage.device)
    cover = torch.zeros_like(coverage[:, 0])  # (B, T)
    barred = torch.zeros_like(coverage[..., 0])  # -inf where chosen
    if weights is None:
        weights = torch.ones_like(barred)
    chosen = []
    covered = []  # (B,) each: before the next is chosen
    for _ in range(count):
        if least is not None:
            covered.append(cover.sum(-1))
        gain = (coverage - cover.unsqueeze(1)).clamp_(min=0).sum(-1)
        best = torch.addcmul(barred, gain, weights).argmax(-1)  # (B,)
        barred = barred.scatter(1, best[:, None], -torch.inf)
        cover = torch.maximum(cover, coverage[rows, best])
        chosen.append(best)
    choices = torch.stack(chosen, 1)  # (B, count), in the order of choice
    if least is None:
        return choices.sort(-1).values
    last = coverage.shape[1]  # sorts behind all candidates
    enough = least * coverage.amax(1).clamp(min=0).sum(-1, keepdim=True)
    is_left = torch.stack(covered, 1) >= enough
    is_left[:, 0] = False  # an image has one token at least
    ascending = choices.masked_fill(is_left, last).sort(-1).values
    return ascending.masked_fill(ascending == last, -1)


def check_coverage(coverage: float | None) -> None:
    """UsageError for what is no share."""
    if coverage is not None and not 0 < coverage <= 1:
        raise UsageError(f"coverage={coverage}: must be a share above 0, 1 at most, or none")


def list_others(kept: Tensor, patches: int) -> Tensor:
    """The indices (B, R), ascending, of those of `patches` patches that are not kept (B, K)."""
    is_kept = torch.zeros(len(kept), patches, dtype=torch.uint8, device=kept.device).scatter(1, kept, 1)
    # 0 sorts before 1, and a stable sort keeps raster order
    return is_kept.argsort(dim=1, stable=True)[:, : patches - kept.shape[1]]


class SubsetCompressor(BudgetCompressor):
    """Base of the compressors that keep some patches as they are. Subclasses define `kept`, ascending, and
    where they vary -1 last, for tokens that are not there; a `forward` of their own takes it, too."""

    is_subset = True

    def __init__(
        self,
        dim: int,
        *,
        rate: int = 3,
        tokens: int | float | None = None,
        grid_policy: GridPolicy = "error",
        positions: Positions = "renumber",
    ):
        super().__init__(rate, grid_policy, tokens, positions)
        self.out_dim = dim

    def kept(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        raise NotImplementedError

    def forward(
        self,
        features: Tensor,
        text: MaybeTensor = None,
        text_mask: MaybeTensor = None,
        kept: MaybeTensor = None,
    ) -> Tensor:
        """(B, H, W, C) -> (B, N, out_dim). kept: the choice (B, N) where it is made already."""
        if kept is None:
            kept = self.kept(features, text, text_mask)
        patches = rearrange(features[..., : self.out_dim], "b h w c -> b (h w) c")  # without cues
        return torch.take_along_dim(patches, kept.clamp(min=0).unsqueeze(-1), 1)

    def present(
        self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None
    ) -> MaybeTensor:
        if not self.varies:
            return None
        return self.kept(features, text, text_mask) >= 0

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        batch, height, width = features.shape[:3]
        index = self.kept(features, text, text_mask)
        is_there = index >= 0
        weights = torch.zeros(batch, height * width, device=features.device)
        weights = weights.scatter_add(1, index.clamp(min=0), is_there / is_there.sum(1, keepdim=True))
        return rearrange(weights, "b (h w) -> b h w", h=height)
