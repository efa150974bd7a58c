"""FastV ("An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764): most visual tokens receive next to
no attention behind the first layers, so those that the prompt's last token attends to least are dropped once.

    layers 1..K: n visual tokens -> layers K+1..L: ratio * n                   (the paper's R is 1 - ratio)

Rotary embeddings make the last token attend most to what is near, so that the bottom of the image is kept;
"Feather the Throttle" (arXiv 2412.13180) ranks by attention without them, and adds tokens at even distances.
"""

import torch
from torch import Tensor

from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import (
    Choice,
    Positions,
    Prompt,
    Pruner,
    View,
    keep_highest,
    put_back,
    register,
)


@register("fastv")
class FastV(Pruner):
    """layer      behind how many decoder layers tokens go; None: 2 of 32, as the paper, or as deep a share
    ratio      share of the visual tokens that is left
    average    share left on average over the layers, in the place of `ratio`
    positions  keep, as the released code
    rotary     false: what is ranked by has no positions in it
    uniform    share of the tokens left that are evenly spaced ones; they count among `ratio`

    With labels, the token before each answer takes the place of the last one."""

    def __init__(
        self,
        llm_layers: int,
        *,
        layer: int | None = None,
        ratio: float = 0.5,
        average: float | None = None,
        positions: Positions = "keep",
        rotary: bool = True,
        uniform: float = 0.0,
    ):
        schedule.check_shares(uniform=uniform)
        layers, shares = schedule.plan_one_drop(llm_layers, layer, 2, ratio, average)
        super().__init__(llm_layers, layers, shares, positions)
        self.rotary = rotary
        self.uniform = uniform

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): the last token of the prompt, or those that answers start from."""
        return query_positions(prompt.last, prompt.asks)

    def choose_tokens(self, view: View) -> Choice:
        """The evenly spaced tokens, and of the others those that receive most attention."""
        scores = view.average_attention()
        kept_counts = self.count_kept_tokens(view)
        if self.uniform:
            even_counts = [schedule.round_share(count, self.uniform) for count in kept_counts]
            scores = scores.masked_fill(mark_even_tokens(view, even_counts), torch.inf)
        return keep_highest(scores, view.visual, kept_counts)


def mark_even_tokens(view: View, even_counts: list[int]) -> Tensor:
    """(B, T): `even_counts[b]` visual tokens of each row, as evenly spaced among them as can be, each in the
    middle of its part."""
    counts = torch.tensor(view.counts, device=view.visual.device).unsqueeze(1)
    limits = torch.tensor(even_counts, device=view.visual.device).unsqueeze(1)
    parts = torch.arange(max(view.counts), device=view.visual.device)  # more than there are in most rows
    middles = (2 * parts + 1) * counts // (2 * limits.clamp(min=1))
    places = torch.where(parts < limits, middles, counts)
    is_even = torch.zeros(len(counts), max(view.counts) + 1, dtype=torch.long, device=counts.device)
    is_even = is_even.scatter(1, places, 1)
    is_even = is_even * (torch.arange(is_even.shape[1], device=counts.device) < counts)
    return put_back(is_even[:, :-1], view.locate_visual_tokens(), view.visual).bool()
