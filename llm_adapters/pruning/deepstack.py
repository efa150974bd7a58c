"""DeepStack: features of visual tokens that a language model adds to their hidden states in front of some of
its layers. Under a pruner they are added by the hook of the layer, which knows what is left."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from llm_adapters.pruning.cuts import Cut, expand_index

# the arguments of language models: a list of features, the first behind the first layer, and their tokens;
# features by the layer that they come in front of, and their tokens
LISTED_NAMES = ("deepstack_visual_embeds", "visual_pos_masks")
NUMBERED_NAMES = ("deepstack_features", "vision_mask")


@dataclass
class DeepStack:
    """features    (visual tokens of all rows, D) by the number of the layer in front of which they are added
    is_visual   (B, T, 1 or D)  their tokens, row by row
    """

    features: Mapping[int, Tensor]
    is_visual: Tensor

    def add_features(self, layer: int, hidden: Tensor, cut: Cut | None) -> Tensor:
        """Hidden states (B, K, D) in front of a layer with what is added there to the visual tokens that
        `cut` has left; one that others were merged into gets its own."""
        features = self.features.get(layer)
        if features is None:
            return hidden
        is_visual = self.is_visual.to(hidden.device)
        wide = hidden.new_zeros(*is_visual.shape[:2], hidden.shape[-1])
        wide = wide.masked_scatter(is_visual, features.to(hidden))
        if cut is not None:
            index = cut.move_to(hidden.device).index
            wide = wide.gather(1, expand_index(index, wide))
        return hidden + wide


def take_deepstack(arguments: dict[str, Any]) -> DeepStack | None:
    """Take DeepStack's features out of the arguments of a language model; None where there are none."""
    features = arguments.pop(NUMBERED_NAMES[0], None)
    is_visual = arguments.pop(NUMBERED_NAMES[1], None)
    listed = arguments.pop(LISTED_NAMES[0], None)
    listed_tokens = arguments.pop(LISTED_NAMES[1], None)
    if listed is not None:
        features = dict(enumerate(listed, start=1))
        is_visual = listed_tokens.unsqueeze(-1)
    if features is None:
        return None
    return DeepStack(features, is_visual)
