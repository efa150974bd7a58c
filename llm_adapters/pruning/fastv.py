"""FastV ("An Image is Worth 1/2 Tokens After Layer 2", arXiv 2403.06764): most visual tokens receive next to
no attention behind the first layers, so those that the prompt's last token attends to least are dropped once.

    layers 1..K: n visual tokens -> layers K+1..L: ratio * n                   (the paper's R is 1 - ratio)
"""

from torch import Tensor

from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Positions, Prompt, Pruner, register


@register("fastv")
class FastV(Pruner):
    """layer      behind how many decoder layers tokens go; None: 2 of 32, as the paper, or as deep a share
    ratio      share of the visual tokens that is left
    average    share left on average over the layers, in the place of `ratio`
    positions  keep, as the released code

    With labels, the token before each answer takes the place of the last one."""

    def __init__(
        self,
        llm_layers: int,
        *,
        layer: int | None = None,
        ratio: float = 0.5,
        average: float | None = None,
        positions: Positions = "keep",
    ):
        layers, shares = schedule.plan_one_drop(llm_layers, layer, 2, ratio, average)
        super().__init__(llm_layers, layers, shares, positions)

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): the last token of the prompt, or those that answers start from."""
        return query_positions(prompt.last, prompt.asks)
