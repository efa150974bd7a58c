"""What a query module reads at its layer: which question, and which patches, each query token sees."""

from einops import rearrange
from torch import Tensor

from connectors.query_module import QueryModule
from llm_adapters.adapter import QueryContext, make_query_masks, mask_images, query_positions


def make_query_context(
    query_module: QueryModule,
    tower_width: int,
    features: Tensor,
    image_turn: Tensor,
    turns: Tensor,
    query_index: Tensor | None,
    is_query: Tensor,
    is_text: Tensor,
) -> QueryContext | None:
    """The context of rows of T tokens; None for rows without query tokens.

    tower_width        C, channels of a patch; what `features` have behind them is for compressors
    features           (B, I, H, W, C or more)
    image_turn         (B, I)
    turns              (B, T)
    query_index        (B, S); None: it is read off `is_query`
    is_query, is_text  (B, T); other tokens are visual ones
    """
    if query_index is None:
        query_index = query_positions(is_query)
    if not query_index.shape[1]:
        return None
    query_turn = turns.gather(1, query_index.clamp(min=0))
    features = features[..., :tower_width]  # without levels and cues
    patches = rearrange(features, "b i h w c -> b (i h w) c")
    patches_of_image = patches.shape[1] // image_turn.shape[1]
    patch_turn = image_turn.repeat_interleave(patches_of_image, 1)
    question_mask, patch_mask = make_query_masks(query_index, turns * is_text, query_turn, patch_turn)
    visual_mask = None
    if query_module.prefuses:
        is_visual = ~(is_query | is_text)
        visual_mask = mask_images(query_index, turns * is_visual, query_turn)
    return QueryContext(query_index, question_mask, patches, patch_mask, visual_mask=visual_mask)
