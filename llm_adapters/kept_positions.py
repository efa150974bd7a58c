"""Positions of tokens in the LLM where patches are left out: counted, or with gaps where a compressor has
`positions=keep`."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from compressors.base import Compressor, MaybeTensor
from compressors.errors import UsageError


def check_rotary(llm: Any) -> None:
    """UsageError for an LLM that cannot take positions with gaps: one without rotary positions, or with
    flash attention."""
    config = llm.config.get_text_config()
    if not getattr(config, "rope_parameters", None) or getattr(config, "alibi", False):
        raise UsageError(
            f"positions=keep: {type(llm).__name__} has no rotary positions, which alone may have gaps; take "
            "positions=renumber"
        )
    if "flash" in (config._attn_implementation or ""):
        raise UsageError(
            f"positions=keep: {config._attn_implementation} takes gaps between positions for ends of texts; "
            "take sdpa, or positions=renumber"
        )


def count_positions(attention_mask: Tensor | None) -> Tensor | None:
    """Positions (B, T) that count the tokens which are there: the same with left and right padding. None, the
    LLM's own choice, without a mask of tokens (a static cache comes with masks made before)."""
    if not isinstance(attention_mask, Tensor) or attention_mask.ndim != 2:
        return None
    return (attention_mask.cumsum(1) - 1).clamp(min=0)


def complete_positions(
    attention_mask: Tensor | None, position_ids: Tensor | None, cache: Cache | None, tokens: Tensor
) -> tuple[Tensor | None, Tensor]:
    """The mask of `tokens` (B, T, ...), and their positions as if none were left out where they are not
    given. UsageError for tokens behind a cache, of which nobody knows what it holds."""
    rows, length = tokens.shape[:2]
    if attention_mask is None and cache is None:
        # without one transformers takes gaps between positions for ends of texts
        attention_mask = torch.ones(rows, length, dtype=torch.long, device=tokens.device)
    if position_ids is None:
        if cache is not None and cache.get_seq_length():
            raise UsageError(
                "positions=keep: tokens behind a KV cache need `position_ids`, which `generate` gives"
            )
        position_ids = count_positions(attention_mask)
    if position_ids is None:  # no mask, or one that was made before
        position_ids = torch.arange(length, device=tokens.device).unsqueeze(0)
    return attention_mask, position_ids


def count_last_positions(inputs: dict[str, Any], attention_mask: Tensor | None, input_ids: Tensor) -> Tensor:
    """The positions of the tokens that `generate` has prepared as `inputs`, the last ones of `input_ids`,
    as if nothing were left out."""
    positions: Tensor | None = inputs.get("position_ids")
    if positions is None:  # older transformers leave them to the model
        positions = count_positions(torch.ones_like(input_ids) if attention_mask is None else attention_mask)
        assert positions is not None  # `generate` keeps a mask of tokens
        positions = positions[:, -inputs["input_ids"].shape[1] :]
    return positions


def compress_with_places(
    compressor: Compressor, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None
) -> tuple[Tensor, Tensor]:
    """The tokens (B, N, C) of a compressor, and the patches (B, N) that they stand at, counted from 0; where
    a token stands at none, 0. UsageError for a compressor that does not tell them."""
    devices = [features.device] if features.is_cuda else []
    # a choice that is drawn in training is drawn again by other forwards
    with torch.random.fork_rng(devices, enabled=compressor.training and not compressor.is_subset):
        kept = compressor.kept(features, text, text_mask)
    if kept is None:
        raise UsageError(f"positions=keep: {type(compressor).__name__} does not tell which patches it keeps")
    tokens: Tensor
    if compressor.is_subset:  # whose forward takes a choice that is made
        tokens = compressor(features, text, text_mask, kept=kept)
    else:
        tokens = compressor(features, text, text_mask)
    return tokens, kept.clamp(min=0)


def shift_positions(is_image: Tensor, places: Tensor, count: int, patches: int) -> Tensor:
    """By how much positions (B, T) are further on where no patch is left out.

    is_image (B, T): where visual tokens are, `count` of an image; places (B, T): at which of its `patches`
    patches each stands. A token is as far behind where its image begins as its patch is behind the first one,
    and what follows an image is behind all of its patches."""
    left_out = patches - count
    visual_tokens = is_image.cumsum(1)  # up to each token, itself one of them
    order = (visual_tokens - 1) % count
    earlier_images = (visual_tokens - 1) // count
    own_shift = places - order + earlier_images * left_out
    return torch.where(is_image, own_shift, visual_tokens // count * left_out)
