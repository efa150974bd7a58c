"""G-Prune ("What Kind of Visual Tokens Do We Need?", arXiv 2501.02268): visual tokens are nodes of a graph
whose edges are similarities, and importance flows along them until it gathers at tokens that stand for many.

    edges       cosines of at least `similarity`, then a softmax over them at `temperature`
    importance  norms of the tokens, carried along the edges `steps` times, over the number of a token's edges

The paper prunes before the LLM; here the tokens are a decoder layer's output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.checks import check_at_least, check_positive
from compressors.errors import UsageError
from compressors.selection import choose_in_float32
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import (
    Choice,
    Need,
    Positions,
    Pruner,
    View,
    keep_highest,
    put_back,
    register,
    take_tokens,
)


@register("gprune")
class GPrune(Pruner):
    """layer        behind how many decoder layers tokens go; None: 2 of 32, or as deep a share
    ratio        share of the visual tokens that is left
    average      share left on average over the layers, in the place of `ratio`
    similarity   cosine from which two tokens have an edge
    temperature  of the softmax over a token's edges
    steps        how far importance flows
    positions    keep: tokens keep their position ids; renumber: those left are consecutive
    """

    needs: tuple[Need, ...] = ()

    def __init__(
        self,
        llm_layers: int,
        *,
        layer: int | None = None,
        ratio: float = 0.5,
        average: float | None = None,
        similarity: float = 0.5,
        temperature: float = 0.03,
        steps: int = 5,
        positions: Positions = "keep",
    ):
        if not -1 <= similarity <= 1:
            raise UsageError(f"similarity={similarity}: a cosine, from -1 to 1")
        check_positive(temperature=temperature)
        check_at_least(1, steps=steps)
        layers, shares = schedule.plan_one_drop(llm_layers, layer, 2, ratio, average)
        super().__init__(llm_layers, layers, shares, positions)
        self.similarity = similarity
        self.temperature = temperature
        self.steps = steps

    def choose_tokens(self, view: View) -> Choice:
        """The tokens at which most importance gathers."""
        index = view.locate_visual_tokens()
        tokens = take_tokens(view.hidden, index)
        importance = spread_importance(tokens, index >= 0, self.similarity, self.temperature, self.steps)
        scores = put_back(importance, index, view.visual)
        return keep_highest(scores, view.visual, self.count_kept_tokens(view))


@choose_in_float32
def spread_importance(
    tokens: Tensor, is_token: Tensor, similarity: float, temperature: float, steps: int
) -> Tensor:
    """(B, N): what gathers at each of tokens (B, N, D), `is_token` (B, N) of them being there."""
    unit = F.normalize(tokens, dim=-1)
    cosine = unit @ unit.mT  # (B, N, N)
    # rounding must not cut a token off from itself: a row without edges has no softmax
    itself = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
    is_edge = (cosine >= similarity) & is_token.unsqueeze(1) & is_token.unsqueeze(2)
    is_edge = is_edge | itself
    flow = (cosine / temperature).masked_fill(~is_edge, -torch.inf).softmax(-1)
    importance = tokens.norm(dim=-1).unsqueeze(1)  # (B, 1, N)
    for _ in range(steps):
        importance = importance @ flow
    return importance.squeeze(1) / is_edge.sum(-1)
