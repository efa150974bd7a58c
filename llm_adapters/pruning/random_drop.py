"""A random choice behind a layer: the control of every other pruner.

    layers 1..K: n visual tokens -> layers K+1..L: ratio * n, any of them

Which ones depends on `seed` and on how many visual tokens a row has, so neither on its batch nor on what ran
before; rows with as many keep the same places.
"""

import torch
from torch import Tensor

from compressors.checks import check_at_least
from compressors.random import make_fixed_order
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Choice, Need, Positions, Pruner, View, keep_highest, put_back, register


@register("random_drop")
class RandomDrop(Pruner):
    """layer      behind how many decoder layers tokens go; None: 2 of 32, or as deep a share
    ratio      share of the visual tokens that is left
    average    share left on average over the layers, in the place of `ratio`
    seed       of the choice
    positions  keep: tokens keep their position ids; renumber: those left are consecutive
    """

    needs: tuple[Need, ...] = ()

    def __init__(
        self,
        llm_layers: int,
        *,
        layer: int | None = None,
        ratio: float = 0.5,
        average: float | None = None,
        seed: int = 0,
        positions: Positions = "keep",
    ):
        check_at_least(0, seed=seed)
        layers, shares = schedule.plan_one_drop(llm_layers, layer, 2, ratio, average)
        super().__init__(llm_layers, layers, shares, positions)
        self.seed = seed

    def choose_tokens(self, view: View) -> Choice:
        """The tokens that come first in the random order of their row."""
        scores = draw_scores(view.counts, self.seed).to(view.visual.device)
        index = view.locate_visual_tokens()
        return keep_highest(put_back(scores, index, view.visual), view.visual, self.count_kept_tokens(view))


def draw_scores(counts: list[int], seed: int) -> Tensor:
    """(B, N): a random order of 0 to -`counts[b]` + 1 in each row, N the largest count; -inf behind."""
    scores = torch.full((len(counts), max(counts)), -torch.inf)
    for row, count in zip(scores, counts):
        row[:count] = -torch.tensor(make_fixed_order(count, seed), dtype=row.dtype)
    return scores
