"""Answers to several questions about one picture: what stands before the first word of a question (system
text and visual tokens) is the same for all of them, and goes through tower, compressor and LLM once.

The rows that ask about a picture begin with copies of its part of the KV cache. Query tokens stand behind
their question, and read the picture's uncompressed features as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from compressors.base import Compressor
from connectors.versions import CACHE, read_cache
from llm_adapters.modeling import FlashSlothForConditionalGeneration


@dataclass
class SharedBatch:
    """Rows of questions about fewer pictures than rows.

    prefix    inputs of the model, a row a picture: all that comes before its questions, P tokens, and images
    rows      inputs of the model, a row a question, whole: the same P tokens, padding, the question
    picture   (B,) which row of `prefix` a row begins with
    """

    prefix: dict[str, Tensor]
    rows: dict[str, Tensor]
    picture: Tensor


def move_inputs(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Inputs where a model is, without waiting for the copies."""
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}


def can_share_prefix(model: FlashSlothForConditionalGeneration) -> bool:
    """Whether a picture's tokens are the same whatever is asked, and the cache can be copied. Not where
    compressor or pruner reads the question, the compressor leaves tokens empty, or a query module reads the
    visual tokens beside the question, which stand behind the cache then. Not where a layer keeps a
    state in place of keys and values, or sees a window: padding stands between prefix and question, and a
    window counts it."""
    compressor = model.compressor
    if (
        compressor.needs_text
        or type(compressor).visible is not Compressor.visible
        or model.pruner is not None
        or (model.query_module is not None and model.query_module.prefuses)
    ):
        return False
    if model.language_model._is_stateful:
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


@torch.inference_mode()
def generate_behind_prefix(
    model: FlashSlothForConditionalGeneration, batch: SharedBatch, **options: Any
) -> Tensor:
    """(B, P + question + answer) token ids, as `generate` gives them for `batch.rows` with their own images;
    `options` are those of `generate`."""
    prefix: dict[str, Any] = move_inputs(batch.prefix, model.device)
    rows: dict[str, Any] = move_inputs(batch.rows, model.device)
    picture = batch.picture.to(model.device, non_blocking=True)
    if "pixel_values" in prefix:
        prefix["vision_features"] = model.get_image_features(prefix.pop("pixel_values"))
    # a prefix has no query tokens
    output = model(**prefix, use_cache=True, logits_to_keep=1)
    cache: Any = read_cache(output)
    cache.batch_select_indices(picture)
    ids: Tensor = model.generate(
        **rows,
        vision_features=prefix["vision_features"][picture],
        image_turn=prefix["image_turn"][picture],
        prefix_length=prefix["input_ids"].shape[1],
        use_cache=True,  # whatever the configuration says: there is a cache
        **{CACHE: cache},
        **options,
    )
    return ids
