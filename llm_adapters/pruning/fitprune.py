"""FitPrune (arXiv 2409.10197): how much each layer drops is fitted on a few samples, so that the attention
that visual tokens give each other and that text gives them changes least, under a budget (`calibration.py`).

    layer l drops to recipe[l] * n, the tokens with the lowest product of both attentions first
    text    that behind the last visual token, as the released code, which knows one image

Tokens go behind the layer whose attention decides; in the released code, behind that layer's attention.
"""

from typing import Literal

import torch
from torch import Tensor

from compressors.errors import UsageError
from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Choice, Positions, Prompt, Pruner, View, keep_highest, register


def mark_all_raters(prompt: Prompt) -> Tensor:
    """(B, T): visual tokens, and all text behind the last of them, which alone attends to each of them: text
    between two images would favour the first. Nothing of a row without visual tokens; no answers."""
    is_text = prompt.given & prompt.mark_behind_images() & prompt.visual.any(1, keepdim=True)
    return prompt.visual | is_text


def split_received_attention(view: View) -> tuple[Tensor, Tensor]:
    """What each visual token receives from visual tokens and from text, (B, T) each, 0 elsewhere."""
    index = view.raters.clamp(min=0)
    is_visual_rater = view.visual.gather(1, index) & (view.raters >= 0)  # (B, S)
    from_visual = view.average_attention(is_visual_rater).masked_fill(~view.visual, 0)
    from_text = view.average_attention(~is_visual_rater).masked_fill(~view.visual, 0)
    return from_visual, from_text


@register("fitprune")
class FitPrune(Pruner):
    """average    share of the visual tokens left on average over the layers: the budget of the calibration
    samples    of the training data it is calibrated on
    recipe     share left behind each layer but the last, what the calibration finds
    positions  keep, as the released code
    """

    heads: Literal["mean", "max"] = "max"

    def __init__(
        self,
        llm_layers: int,
        *,
        average: float = 0.5,
        samples: int = 64,
        recipe: tuple[float, ...] | None = None,
        positions: Positions = "keep",
    ):
        schedule.check_shares(average=average)
        if samples < 1:
            raise UsageError(f"samples={samples}: a calibration needs at least 1")
        layers = tuple(range(1, llm_layers))
        shares = recipe
        if recipe is not None and len(recipe) != len(layers):
            raise UsageError(f"recipe: {len(recipe)} shares for {len(layers)} layers; give one for each")
        if shares is None:  # until it is calibrated: one share for all layers, so that costs can be counted
            shares = schedule.solve_shares(llm_layers, layers, average, lambda r: (r,) * len(layers))
        super().__init__(llm_layers, layers, shares, positions)
        self.average = average
        self.samples = samples if recipe is None else 0

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): visual tokens, and all text behind the last of them. UsageError without a recipe."""
        is_rater = mark_all_raters(prompt)
        if is_rater.is_meta:  # counts need no recipe, the budget tells them; and room for all raters
            return query_positions(is_rater, is_rater.shape[1])
        if self.samples:
            raise UsageError(
                "fitprune has no recipe yet; fit one with llm_adapters.pruning.calibration, or "
                "give recipe=[...], the share left behind each layer but the last"
            )
        return query_positions(is_rater)

    def choose_tokens(self, view: View) -> Choice:
        """The tokens with the highest product of what they receive from visual tokens and from text."""
        from_visual, from_text = split_received_attention(view)
        return keep_highest(from_visual * from_text, view.visual, self.count_kept_tokens(view))


class AttentionObserver(Pruner):
    """Drops nothing; remembers how much attention visual tokens receive in each layer."""

    heads: Literal["mean", "max"] = "max"
    registered_name = "fitprune"

    def __init__(self, llm_layers: int):
        layers = tuple(range(1, llm_layers))
        super().__init__(llm_layers, layers, (1.0,) * len(layers), "keep")
        self.sums: list[tuple[Tensor, Tensor]] = []  # (B,) each, prefill by prefill and layer by layer

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): as FitPrune's."""
        return query_positions(mark_all_raters(prompt))

    def choose_tokens(self, view: View) -> Choice:
        """All that is there."""
        from_visual, from_text = split_received_attention(view)
        self.sums.append((from_visual.sum(1), from_text.sum(1)))
        return Choice(view.visual, view.counts)


class LossTrial(AttentionObserver):
    """Drops, in each layer, the tokens that are among the lowest in both attentions, as long as what is left
    receives at least 1 - `loss` of what an unpruned layer's visual tokens do (`AttentionObserver.sums`, in
    order)."""

    def __init__(self, llm_layers: int, loss: float, sums: list[tuple[Tensor, Tensor]], positions: Positions):
        super().__init__(llm_layers)
        self.loss = loss
        self.whole = iter(sums)
        self.positions = positions
        self.left: list[tuple[list[int], list[int]]] = []  # (counts, first) of each prefill and layer

    def choose_tokens(self, view: View) -> Choice:
        """What has to stay for either of the two attentions."""
        is_dropped = view.visual.clone()
        for received, whole in zip(split_received_attention(view), next(self.whole)):
            is_dropped &= self.mark_dispensable(view.visual, received, whole)
        keep = view.visual & ~is_dropped
        counts = keep.sum(1).tolist()
        self.left.append((counts, view.first))
        return Choice(keep, counts)

    def mark_dispensable(self, visual: Tensor, received: Tensor, whole: Tensor) -> Tensor:
        """(B, T): the lowest visual tokens (B, T) by the attention that they have `received` (B, T), as many
        as can go together; `whole` (B,) is the sum in an unpruned layer."""
        # others than visual tokens come last, behind all that can go
        ascending, order = received.masked_fill(~visual, torch.inf).sort(dim=1, stable=True)
        remaining = received.sum(1, keepdim=True) - ascending.cumsum(1)  # without it and all lower ones
        is_enough = remaining >= (1 - self.loss) * whole.unsqueeze(1)
        return is_enough.gather(1, order.argsort(1))  # in the order of the tokens
