"""The contract of an in-LLM pruner: which visual tokens go on behind some decoder layers of a prefill.

A pruner names its layers, what it `needs` to know of them, and its raters, the tokens whose attention
counts. The mechanism computes that in each of these layers, asks the pruner which visual tokens to keep, and
takes the others out of all later layers: hidden states, KV cache, masks. Other tokens are never dropped.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from compressors.errors import UsageError
from compressors.registry import Registry
from compressors.selection import without_autocast
from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule

registry = Registry("pruner", group="slothkit.pruners", context=("llm_layers",))
register = registry.register
Positions = Literal["keep", "renumber"]
Need = Literal["attention", "keys", "normed"]
# methods that an outside package's pruner may still override by the name of an earlier release
RENAMED_METHODS = {
    "choose": "choose_tokens",
    "raters": "select_raters",
    "targets": "count_kept_tokens",
}


@dataclass
class Prompt:
    """B rows of T tokens before the first decoder layer. Tokens generated since count as none of these.

    visual   (B, T)     visual tokens
    text     (B, T)     tokens of questions
    real     (B, T)     all tokens, padding aside
    given    (B, T)     those of them that stand before an answer and are none; all without labels
    last     (B, T)     what answers start from: the last token; with labels the one before each answer
    asks     most `last` tokens that a row has
    counts   visual tokens of each row
    embeds   (B, T, D)  input embeddings
    """

    visual: Tensor
    text: Tensor
    real: Tensor
    given: Tensor
    last: Tensor
    asks: int
    counts: list[int]
    embeds: Tensor

    def mark_behind_images(self) -> Tensor:
        """(B, T): tokens behind the last visual one of their row, all of a row without any. No other token of
        the text attends to every visual one: to those that come later each has an attention of exactly 0."""
        visual_from_here = self.visual.flip(1).cumsum(1).flip(1)  # how many stand here or later
        return visual_from_here == 0

    def mark_last_question(self) -> Tensor:
        """(B, T): tokens of questions behind the last visual one, else what answers start from."""
        question = self.text & self.mark_behind_images()
        has_question = question.any(1, keepdim=True)
        return question | (self.last & ~has_question)


@dataclass
class View:
    """What a pruner decides on behind a decoder layer; T counts the tokens left, N the visual ones of
    the row that has most of them.

    number     which of the pruner's `layers`, from 0
    visual     (B, T)     visual tokens that are left
    counts     how many of them each row has
    first      how many it had at the start
    raters     (B, S)     positions of the row's raters, -1 fills
    attention  (B, S, T)  their attention in this layer, over heads as the pruner's `heads` says; fills: 0;
                          (B, 1, T) of a pruner that `pools`
    hidden     (B, T, D)  the layer's output

    Where the pruner `needs` them, otherwise None (attention: (B, 0, T)):

    keys    (B, T, G*d)  keys of this layer as its KV cache has them, all G heads side by side
    normed  (B, T, D)    the layer's output as the LLM's last norm makes it
    """

    number: int
    visual: Tensor
    counts: list[int]
    first: list[int]
    raters: Tensor
    attention: Tensor
    hidden: Tensor
    keys: Tensor | None = None
    normed: Tensor | None = None

    def locate_visual_tokens(self) -> Tensor:
        """(B, N): positions of the visual tokens that are left, ascending, -1 fills."""
        return query_positions(self.visual, max(self.counts))

    def average_attention(self, raters: Tensor | None = None) -> Tensor:
        """(B, T): mean attention that each token receives from the raters, or from those of (B, S)."""
        chosen = self.raters >= 0
        if raters is not None:
            chosen = chosen & raters
        # a row without raters has weights of 0, not 0 / 0
        weights = chosen / chosen.sum(1, keepdim=True).clamp(min=1)
        with without_autocast(weights.device.type):  # which would round what is compared
            return torch.einsum("bs,bst->bt", weights.to(self.attention.dtype), self.attention)


class Choice(NamedTuple):
    """keep (B, T): visual tokens that go on, `counts[b]` of each row. `into` (B, T), if given: the token that
    each is merged into, itself for most; one that others are merged into becomes the mean of them all.
    `sizes` (B, T), of a pruner that is `proportional`: how many tokens each stands for."""

    keep: Tensor
    counts: list[int]
    into: Tensor | None = None
    sizes: Tensor | None = None


class Pruner:
    """Base class. Knobs are keyword arguments; `llm_layers` is the LLM's depth.

    layers     behind how many decoder layers tokens go, ascending
    shares     share of a row's visual tokens that is left behind each of them; None: known only in a run
    positions  keep: tokens keep their position ids; renumber: those left are consecutive
    needs      what it reads of its layers beside hidden states: only that is computed
    heads      mean or max: how attention heads are joined
    rotary     whether attention is that of the LLM, or what it would be without rotary position embeddings
    pools      whether the raters look as one: the attention of their mean query to themselves
    proportional   whether a token receives attention for all that it stands for: the logarithm of its size
                   is added to its logits, in masks, which flash attention does not take
    samples    prompts of the training data that it still has to be calibrated on
    """

    needs: tuple[Need, ...] = ("attention",)
    heads: Literal["mean", "max"] = "mean"
    rotary: bool = True
    pools: bool = False
    proportional: bool = False
    samples: int = 0
    registered_name: str  # set where it is registered

    def __init__(
        self,
        llm_layers: int,
        layers: tuple[int, ...],
        shares: tuple[float, ...] | None,
        positions: Positions,
    ):
        schedule.check_schedule(llm_layers, layers, shares)
        self.llm_layers = llm_layers
        self.layers = layers
        self.shares = shares
        self.positions = positions
        # in all prefills so far: visual tokens through all layers, and rows with any
        self.passed = 0.0
        self.rows = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """TypeError for a pruner that still overrides a method by its old name, which nobody would call."""
        super().__init_subclass__(**kwargs)
        for old_name, new_name in RENAMED_METHODS.items():
            if hasattr(cls, old_name):  # of the class itself or of a mixin: the base class has none of these
                raise TypeError(f"{cls.__name__}.{old_name}: this method is called {new_name} now; rename it")

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S) positions of the tokens whose attention counts, -1 fills; none by default."""
        return prompt.visual.new_empty(len(prompt.visual), 0, dtype=torch.long)

    def choose_tokens(self, view: View) -> Choice:
        """What is left: by default those that receive most attention, as many as `shares` says."""
        return keep_highest(view.average_attention(), view.visual, self.count_kept_tokens(view))

    def count_kept_tokens(self, view: View) -> list[int]:
        """How many visual tokens `shares` leaves to each row."""
        share = self.known_shares()[view.number]
        kept_counts = []
        for count, first in zip(view.counts, view.first):
            # of the first count, not of what an earlier layer left: shares do not multiply
            kept_counts.append(min(count, schedule.round_share(first, share)))
        return kept_counts

    def known_shares(self) -> tuple[float, ...]:
        """`shares`, or a UsageError where they are known only in a run."""
        if self.shares is None:
            raise UsageError(
                f"{self.registered_name}: how many tokens it leaves depends on the image and "
                "the question, with these knobs; run it to know"
            )
        return self.shares

    def tokens_by_layer(self, n: int) -> list[int]:
        """Visual tokens in each decoder layer, of `n` at the start."""
        counts = [schedule.round_share(n, share) for share in self.known_shares()]
        return schedule.expand_to_layers(self.llm_layers, self.layers, counts, n)

    def average_visual_tokens(self, n: int) -> float:
        """Visual tokens of `n`, averaged over the decoder layers."""
        return sum(self.tokens_by_layer(n)) / self.llm_layers

    def measured_visual_tokens(self) -> float | None:
        """The same, as it was in all prefills so far of rows that have visual tokens."""
        if not self.rows:
            return None
        return self.passed / self.rows / self.llm_layers


def keep_highest(scores: Tensor, visual: Tensor, counts: list[int]) -> Choice:
    """The visual tokens with the highest `scores` (B, T), `counts[b]` of each row; of equals the first."""
    limits = torch.tensor(counts, device=scores.device)
    return Choice(mark_highest(scores, visual, limits), counts)


def mark_highest(scores: Tensor, chosen: Tensor, limits: Tensor) -> Tensor:
    """(B, T): those of the `chosen` (B, T) with the highest `scores` (B, T), `limits` (B,) of each row or all
    where there are fewer; of equals the first."""
    scores = scores.float().masked_fill(~chosen, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(1)  # the inverse permutation: which place each token has
    return (rank < limits.unsqueeze(1)) & chosen


def take_tokens(values: Tensor, index: Tensor) -> Tensor:
    """(B, T, D) at the positions `index` (B, N) -> (B, N, D) in float32; zeros where the index is -1."""
    taken = torch.take_along_dim(values, index.clamp(min=0).unsqueeze(2), 1)
    return taken.float().masked_fill((index < 0).unsqueeze(2), 0)


def put_back(values: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """(B, N) -> as `like` (B, T): what belongs to the positions `index` (B, N) there, 0 elsewhere; of -1
    nothing."""
    # fills go to a place behind the last, which is cut off
    wide = values.new_zeros(len(like), like.shape[1] + 1)
    places = torch.where(index < 0, like.shape[1], index)
    return wide.scatter(1, places, values)[:, :-1]
