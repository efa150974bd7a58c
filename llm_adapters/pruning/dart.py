"""DART ("Stop Looking for Important Tokens in Multimodal Language Models", arXiv 2502.11494): what duplicates
other tokens goes. A few pivots are chosen, and of all other visual tokens those stay that are least like a
pivot; no attention map is needed.

    pivots    the `visual_pivots` visual tokens and the `text_pivots` question tokens behind the image whose
              keys have the largest L1 norm, all heads together
    kept      the visual pivots, and for each pivot in turn its part of the budget: the tokens of the lowest
              cosine to it, of hidden states that went through the LLM's last norm

Pivots take their turns in the order of the prompt, where the released code has the arbitrary order of a
Python set. The budget is met exactly: what does not divide by the pivots goes to the first of them, while
the released code rounds down (124 of 128 tokens) and may ask for more tokens than there are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.checks import check_at_least
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


@register("dart")
class Dart(Pruner):
    """layer          behind how many decoder layers tokens go; None: 2 of 32, as the paper
    ratio          share of the visual tokens that is left
    average        share left on average over the layers, in the place of `ratio`
    visual_pivots  of a row, at least one; all that is kept where the budget is smaller
    text_pivots    of a row; fewer where its question is shorter
    positions      keep, as the released code
    """

    needs: tuple[Need, ...] = ("keys", "normed")

    def __init__(
        self,
        llm_layers: int,
        *,
        layer: int | None = None,
        ratio: float = 0.5,
        average: float | None = None,
        visual_pivots: int = 4,
        text_pivots: int = 4,
        positions: Positions = "keep",
    ):
        check_at_least(1, visual_pivots=visual_pivots)
        check_at_least(0, text_pivots=text_pivots)
        layers, shares = schedule.plan_one_drop(llm_layers, layer, 2, ratio, average)
        super().__init__(llm_layers, layers, shares, positions)
        self.visual_pivots = visual_pivots
        self.text_pivots = text_pivots

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): question tokens behind the last visual one, else what answers start from."""
        question = prompt.mark_last_question()
        if question.is_meta:  # how many there are cannot be read: room for all
            return query_positions(question, question.shape[1])
        return query_positions(question)

    def choose_tokens(self, view: View) -> Choice:
        """The visual pivots, and the tokens that are least like any pivot."""
        assert view.keys is not None and view.normed is not None  # both are needed
        index = view.locate_visual_tokens()
        kept_counts = self.count_kept_tokens(view)
        limits = torch.tensor(kept_counts, device=index.device)
        is_pivot = mark_pivots(view.keys, index, limits.clamp(max=self.visual_pivots))
        text_limits = torch.full_like(limits, self.text_pivots)
        is_text_pivot = mark_pivots(view.keys, view.raters, text_limits)
        visual_pivots = list_marked(is_pivot, index, self.visual_pivots)
        text_pivots = list_marked(is_text_pivot, view.raters, self.text_pivots)
        pivots = torch.cat([visual_pivots, text_pivots], 1)
        similarity = compare_tokens(take_tokens(view.normed, pivots), take_tokens(view.normed, index))
        kept = add_least_similar(similarity, is_pivot, index >= 0, pivots >= 0, limits)
        return Choice(put_back(kept, index, view.visual), kept_counts)


@choose_in_float32
def compare_tokens(pivots: Tensor, tokens: Tensor) -> Tensor:
    """Cosines (B, P, N) of pivots (B, P, D) and tokens (B, N, D)."""
    return F.normalize(pivots, dim=-1) @ F.normalize(tokens, dim=-1).mT


def mark_pivots(keys: Tensor, index: Tensor, limits: Tensor) -> Tensor:
    """(B, S): which of the tokens at `index` (B, S), -1 fills, have the largest L1 norm of keys (B, T, G*d),
    `limits` (B,) of each row."""
    norms = take_tokens(keys, index).abs().sum(-1)
    return mark_highest(norms, index >= 0, limits)


def list_marked(marks: Tensor, index: Tensor, count: int) -> Tensor:
    """(B, `count` or S): the positions `index` (B, S) of what is marked (B, S), ascending, -1 fills."""
    places = query_positions(marks, min(count, marks.shape[1]))
    found = index.gather(1, places.clamp(min=0))
    return torch.where(places >= 0, found, -1)


def add_least_similar(
    similarity: Tensor, kept: Tensor, is_token: Tensor, is_pivot: Tensor, limits: Tensor
) -> Tensor:
    """(B, N): the tokens `kept` (B, N) and, pivot by pivot, those that are least similar to it, `limits` (B,)
    of each row all together.

    similarity (B, P, N); is_token (B, N) and is_pivot (B, P) say which of them there are."""
    missing = limits - kept.sum(1)
    turns = is_pivot.sum(1).clamp(min=1)
    turn = is_pivot.cumsum(1) - 1  # (B, P): which pivot of its row each is
    for place in range(is_pivot.shape[1]):
        is_early = turn[:, place] < missing % turns
        part = missing // turns + is_early
        part = part * is_pivot[:, place]
        kept = kept | mark_highest(-similarity[:, place], is_token & ~kept, part)
    return kept
