"""PACT ("PACT: Pruning and Clustering-Based Token Reduction", arXiv 2504.08966, repository orailix/PACT).
What is unimportant goes, and of the rest what is alike becomes one.

    importance  attention of the mean query of all tokens up to the image's end, without rotary positions, to
                the keys there, times the L2 norm of the hidden state; the share `important` stays
    centres     distance bounded density peaks: of what stays, the densest first, a token is a centre unless
                one lies within `distance` (1 - cosine of keys); density: sum of exp(-(distance / 2)^2)
    merging     a token goes to its nearest centre, an unimportant one only within `recall` times `distance`;
                the centre becomes the mean of all
    attention   the logarithm of how many tokens a centre stands for is added to its logits

The paper has a distance, so how many tokens are left depends on the image. With `ratio` or `average` the
count is exact: each row has the distance at which there are no more centres than that, and what is missing
are its most important other tokens. Queries and keys are those of the layer behind which tokens go; the
released code computes those of the next one beforehand.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.errors import UsageError
from compressors.selection import choose_in_float32
from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import (
    Choice,
    Need,
    Positions,
    Prompt,
    Pruner,
    View,
    mark_highest,
    put_back,
    register,
    take_tokens,
)

FARTHEST = 2.0  # 1 - cosine of opposites
DENSITY_SCALE = 2.0
BISECTIONS = 12  # distances to a two-thousandth


@register("pact")
class Pact(Pruner):
    """layer         behind how many decoder layers tokens go; None: 4 of 32, or as deep a share
    ratio         share of the visual tokens that is left
    average       share left on average over the layers, in the place of `ratio`
    distance      in the place of both: centres lie farther apart than this, as many as there are; 0.21 in the
                  paper
    important     share that is not unimportant, never less than what is left
    recall        how many distances from a centre an unimportant token still joins it
    proportional  whether a token receives attention for all that it stands for
    rotary        whether importance is attention with rotary positions
    positions     keep, as the released code
    """

    needs: tuple[Need, ...] = ("attention", "keys")
    pools = True

    def __init__(
        self,
        llm_layers: int,
        *,
        layer: int | None = None,
        ratio: float = 0.5,
        average: float | None = None,
        distance: float | None = None,
        important: float = 0.55,
        recall: float = 1.5,
        proportional: bool = True,
        rotary: bool = False,
        positions: Positions = "keep",
    ):
        schedule.check_shares(important=important)
        if distance is not None and not 0 <= distance <= FARTHEST:
            raise UsageError(f"distance={distance}: one less a cosine, from 0 to 2")
        if not recall >= 0:
            raise UsageError(f"recall={recall}: must be at least 0")
        if distance is not None and average is not None:
            raise UsageError(
                f"pact: distance={distance} settles how many tokens are left, so average={average} cannot; "
                "set one of them"
            )
        layers, shares = schedule.plan_one_drop(llm_layers, layer, 4, ratio, average)
        super().__init__(llm_layers, layers, None if distance is not None else shares, positions)
        self.distance = distance
        self.important = important
        self.recall = recall
        self.proportional = proportional
        self.rotary = rotary

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): all tokens up to the last visual one, answers aside."""
        visual_from_here = prompt.visual.flip(1).cumsum(1).flip(1)
        raters = prompt.given & (visual_from_here > 0)
        if raters.is_meta:  # how many there are cannot be read: room for all
            return query_positions(raters, raters.shape[1])
        return query_positions(raters)

    def choose_tokens(self, view: View) -> Choice:
        """The centres of clusters, and what joins them."""
        if self.distance is not None and view.hidden.is_meta:
            self.known_shares()
        if self.distance is None and self.count_kept_tokens(view) == view.counts:
            return Choice(view.visual, view.counts)
        assert view.keys is not None  # it is needed
        index = view.locate_visual_tokens()
        importance = self.rate_importance(view, index)
        is_important = self.mark_important(view, importance, index >= 0)
        apart = measure_distances(take_tokens(view.keys, index))
        ranks = rank_by_density(apart, is_important)
        if self.distance is not None:
            bounds = torch.full_like(apart[:, 0, 0], self.distance)
            centres = find_centres(apart, ranks, is_important, bounds)
            counts = centres.sum(1).tolist()
        else:
            counts = self.count_kept_tokens(view)
            limits = torch.tensor(counts, device=index.device)
            bounds = find_bounds(apart, ranks, is_important, limits)
            centres = find_centres(apart, ranks, is_important, bounds)
            missing = limits - centres.sum(1)
            centres = centres | mark_highest(importance, is_important & ~centres, missing)
            # a row that keeps none has a centre all the same, at any distance
            centres = mark_highest(importance, centres, limits)
        reach = torch.where(is_important, FARTHEST, bounds.unsqueeze(1) * self.recall)
        groups = join_centres(apart, centres, (index >= 0) & ~centres, reach)
        return self.make_choice(view, index, centres, groups, counts)

    def rate_importance(self, view: View, index: Tensor) -> Tensor:
        """(B, N), of the visual tokens at `index` (B, N)."""
        attention = view.attention[:, 0].gather(1, index.clamp(min=0))
        return attention * take_tokens(view.hidden, index).norm(dim=-1)

    def mark_important(self, view: View, importance: Tensor, is_token: Tensor) -> Tensor:
        """(B, N): the tokens of which centres are chosen."""
        limits = [max(1, int(count * self.important)) for count in view.counts]
        if self.distance is None:
            limits = list(map(max, limits, self.count_kept_tokens(view)))
        return mark_highest(importance, is_token, torch.tensor(limits, device=is_token.device))

    def make_choice(
        self, view: View, index: Tensor, centres: Tensor, groups: Tensor, counts: list[int]
    ) -> Choice:
        """What stays, from the centres (B, N) and each token's place of its centre, `groups` (B, N)."""
        goes_to = index.gather(1, groups)
        places = torch.arange(view.visual.shape[1], device=index.device)
        into = places + put_back(goes_to - index, index, view.visual)
        sizes = None
        if self.proportional:
            members = F.one_hot(groups, groups.shape[1]).sum(1).float()
            sizes = 1 + put_back((members - 1) * centres, index, view.visual)
        return Choice(put_back(centres, index, view.visual), counts, into, sizes)


@choose_in_float32
def measure_distances(tokens: Tensor) -> Tensor:
    """(B, N, N): one less the cosine of tokens (B, N, C); exactly 0 from each to itself."""
    unit = F.normalize(tokens, dim=-1)
    apart = (1 - unit @ unit.mT).clamp(min=0)
    itself = torch.eye(apart.shape[1], dtype=torch.bool, device=apart.device)
    return apart.masked_fill(itself, 0)


def rank_by_density(apart: Tensor, chosen: Tensor) -> Tensor:
    """(B, N): 0 for the densest of the chosen (B, N), of equals the first; what is not chosen comes last."""
    nearness = torch.exp(-((apart / DENSITY_SCALE) ** 2)).masked_fill(~chosen.unsqueeze(1), 0)
    density = nearness.sum(2).masked_fill(~chosen, -1)
    order = density.argsort(dim=1, descending=True, stable=True)
    return order.argsort(1)


def find_centres(apart: Tensor, ranks: Tensor, chosen: Tensor, bounds: Tensor) -> Tensor:
    """(B, N): of the chosen (B, N), by rank, each that has no centre within its row's bound (B,)."""
    is_near = apart <= bounds.view(-1, 1, 1)
    is_denser = ranks.unsqueeze(1) < ranks.unsqueeze(2)  # (B, N, N): the second than the first
    rivals = is_near & is_denser
    centres = torch.zeros_like(chosen)
    undecided = chosen
    while True:
        # all at once whose denser neighbours are decided: as one by one, in a few rounds
        found = undecided & ~(rivals & undecided.unsqueeze(1)).any(2)
        centres = centres | found
        undecided = undecided & ~(is_near & found.unsqueeze(1)).any(2)
        if undecided.is_meta or not undecided.any():
            return centres


def find_bounds(apart: Tensor, ranks: Tensor, chosen: Tensor, limits: Tensor) -> Tensor:
    """(B,): for each row a distance at which it has no more centres than `limits` (B,), and barely fewer."""
    low = torch.zeros_like(apart[:, 0, 0])
    high = torch.full_like(low, FARTHEST)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        is_enough = find_centres(apart, ranks, chosen, middle).sum(1) <= limits
        high = torch.where(is_enough, middle, high)
        low = torch.where(is_enough, low, middle)
    return high


def join_centres(apart: Tensor, centres: Tensor, others: Tensor, reach: Tensor) -> Tensor:
    """(B, N): the place of the nearest centre (B, N) for each of the `others` (B, N) that has one within its
    `reach` (B, N); its own place for all else."""
    nearest = apart.masked_fill(~centres.unsqueeze(1), torch.inf).min(2)
    joins = others & (nearest.values <= reach)
    places = torch.arange(apart.shape[1], device=apart.device)
    return torch.where(joins, nearest.indices, places)
