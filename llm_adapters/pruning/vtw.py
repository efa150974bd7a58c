"""VTW ("Boosting Multimodal Large Language Models with Visual Tokens Withdrawal", arXiv 2405.05803): behind
some layer the text has taken up what it needs of the image, so all visual tokens leave there.

    layers 1..K: n visual tokens -> layers K+1..L: none

The paper finds K by the divergence of answers on a few samples; here it is a knob.
"""

from compressors.errors import UsageError
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Need, Positions, Pruner, register


@register("vtw")
class Vtw(Pruner):
    """layer      behind how many decoder layers all visual tokens go; None: 15 of 32, as the paper for
               LLaVA-1.5-7B, or as deep a share
    average    share left on average over the layers, in the place of `layer`: the layer that comes nearest
    positions  keep, as the released code
    """

    needs: tuple[Need, ...] = ()

    def __init__(
        self,
        llm_layers: int,
        *,
        layer: int | None = None,
        average: float | None = None,
        positions: Positions = "keep",
    ):
        schedule.check_shares(average=average)
        layers = schedule.scale_layers(llm_layers, (15,))
        if layer is not None:
            layers = (layer,)
        if average is not None:
            layers = (find_layer(llm_layers, layer, average),)
        super().__init__(llm_layers, layers, (0.0,), positions)


def find_layer(llm_layers: int, layer: int | None, average: float) -> int:
    """Behind how many of `llm_layers` all visual tokens go, so that their share over the layers comes nearest
    to `average`. UsageError where a `layer` is set already, or none is near."""
    if layer is not None:
        raise UsageError(
            f"vtw: layer={layer} settles the average, so average={average} cannot; set one of them"
        )
    nearest = schedule.round_share(llm_layers, average)
    if not 1 <= nearest < llm_layers:
        raise UsageError(
            f"average={average}: all visual tokens go behind one of {llm_layers} decoder layers, so the "
            f"average share is between {1 / llm_layers:.3g} and {1 - 1 / llm_layers:.3g}"
        )
    return nearest
