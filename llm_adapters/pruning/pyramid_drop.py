"""PyramidDrop (arXiv 2410.17247): visual tokens become redundant gradually, so the LLM is cut into stages and
behind each the share `ratio` goes on that the last token of the instruction attends to most.

    stages of L/4 layers: n -> ratio * n -> ratio^2 * n -> ratio^3 * n

The ranking is by the attention in the last layer of a stage; the released code takes the query and key
weights of the layer behind it.
"""

from torch import Tensor

from llm_adapters.adapter import query_positions
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Positions, Prompt, Pruner, register


@register("pyramid_drop")
class PyramidDrop(Pruner):
    """layers     behind how many decoder layers each stage ends; None: a quarter, a half, three quarters
    ratio      share of a stage's visual tokens that the next one sees
    average    share left on average over the layers, in the place of `ratio`
    positions  renumber, as the released code

    With labels, the tokens before each answer rank together, as in the released training code."""

    def __init__(
        self,
        llm_layers: int,
        *,
        layers: tuple[int, ...] | None = None,
        ratio: float = 0.5,
        average: float | None = None,
        positions: Positions = "renumber",
    ):
        schedule.check_shares(ratio=ratio, average=average)
        if layers is None:
            layers = schedule.scale_layers(llm_layers, (8, 16, 24))
        shares = schedule.find_shares(llm_layers, layers, ratio, average)
        super().__init__(llm_layers, layers, shares, positions)

    def select_raters(self, prompt: Prompt) -> Tensor:
        """(B, S): the last token of the prompt, or those that answers start from."""
        return query_positions(prompt.last, prompt.asks)
