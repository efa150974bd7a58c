"""positions=keep in a model of transformers: the LLM sees kept patches where they stand among all patches.

For families whose images, or crops, are runs of as many tokens at positions of text. Where positions follow
the image's grid, or a picture's tiles have tokens between their rows, it is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.versions import read_cache
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.wrapping import Kwargs, split_placeholders
from llm_adapters.visual_prompt import check_rotary, shift_positions

RUNS = ("fixed", "runs")  # of a family's `processor`: every crop has as many placeholders, side by side


@dataclass
class KeptPatches:
    """The patches (M, N) that the tokens of M crops, in their order, stand at, of `patches` patches each."""

    places: Tensor
    patches: int


@dataclass
class PositionKeeper:
    """Positions of one model. left_out: patches of a crop that are not kept, of `count` tokens."""

    model: PreTrainedModel
    language_model: Any
    count: int
    left_out: int

    def keep_positions(self, kwargs: Kwargs, is_image: Tensor, kept: KeptPatches | None) -> None:
        """Change `position_ids`, and where there is no mask `attention_mask`, in the arguments of the base's
        forward; `kept` comes with images alone."""
        check_rotary(self.language_model)
        cache = read_cache(kwargs)
        positions = kwargs.get("position_ids")
        mask = kwargs.get("attention_mask")
        if positions is None:
            if cache is not None and cache.get_seq_length():
                raise UsageError(
                    "positions=keep: tokens behind a KV cache need `position_ids`, which `generate` gives"
                )
            counted = mask if isinstance(mask, Tensor) and mask.ndim == 2 else torch.ones_like(is_image)
            positions = (counted.long().cumsum(1) - 1).clamp(min=0)
        if mask is None and cache is None:
            # without one transformers takes gaps between positions for ends of texts
            kwargs["attention_mask"] = torch.ones_like(is_image, dtype=torch.long)
        if kept is not None:
            positions = positions + shift_positions(
                is_image, spread_places(is_image, kept.places), self.count, kept.patches
            )
        kwargs["position_ids"] = positions

    def continue_positions(
        self, original: Callable[..., dict[str, Any]], input_ids: Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Around `prepare_inputs_for_generation`: tokens without their images stand behind all patches."""
        inputs = original(input_ids, *args, **kwargs)
        if inputs.get("pixel_values") is not None or inputs.get("mm_encoder_outputs"):
            return inputs
        positions = inputs.get("position_ids")
        if positions is None:  # older transformers leave them to the model
            mask = kwargs.get("attention_mask")
            counted = torch.ones_like(input_ids) if mask is None else mask
            positions = (counted.long().cumsum(1) - 1)[:, -inputs["input_ids"].shape[1] :]
        is_image, _ = split_placeholders(input_ids, self.model.config, None)
        images = is_image.sum(1, keepdim=True) // self.count
        return {**inputs, "position_ids": positions + images * self.left_out}


def spread_places(is_image: Tensor, places: Tensor) -> Tensor:
    """Places (M, N) at the placeholders (B, T) that they belong to; of beams each has its row's."""
    beams = int(is_image.sum()) // places.numel()  # `generate` repeats each row so many times
    is_own = is_image[::beams]
    spread = torch.zeros_like(is_own, dtype=torch.long)
    spread[is_own] = places.flatten().to(spread.device)
    return spread.repeat_interleave(beams, 0)


def make_position_keeper(
    family: ModelFamily, model: PreTrainedModel, part: Compressor, name: str
) -> PositionKeeper | None:
    """For a compressor that keeps positions, None for others; UsageError where they cannot be kept."""
    if not part.keeps_positions:
        return None
    base = cast(PreTrainedModel, model.base_model)
    kind = base.config.model_type
    refusal = f"compressor '{name}': positions=keep: in models of type '{kind}'"
    if family.rope:
        raise UsageError(f"{refusal} positions follow the grid of an image; take positions=renumber")
    if family.processor not in RUNS or family.whole_images:
        raise UsageError(
            f"{refusal} other tokens stand between the patches of an image; take positions=renumber"
        )
    language_model = getattr(base, family.language_model)
    check_rotary(language_model)
    height, width = family.grid(base)
    count = part.num_tokens(height, width)
    return PositionKeeper(model, language_model, count, height * width - count)
