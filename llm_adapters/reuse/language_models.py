"""The language model in a multimodal model of transformers, found without a family's entry: for pruners."""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from compressors.errors import UsageError
from llm_adapters.adapter import decoder_layers
from llm_adapters.pruning.attention import find_attention
from llm_adapters.reuse.wrapping import IMAGE_TOKEN_NAMES, read_token_id

# where models without their head keep their language model
LANGUAGE_MODEL_NAMES = ("language_model", "text_model")


def find_language_model(model: nn.Module) -> nn.Module:
    """The language model of a multimodal model, into whose sequence visual tokens are merged and which has
    attention in every layer. UsageError with the reason for another."""
    config: Any = getattr(model, "config", None)  # any module may be given, by mistake
    if not isinstance(model, PreTrainedModel):
        raise _refuse(model, "it is no model of transformers")
    text_config = config.get_text_config()
    if config.is_encoder_decoder or text_config.is_encoder_decoder:
        raise _refuse(model, "it is an encoder-decoder, whose decoder has no visual tokens in its sequence")
    base: Any = model.base_model
    language_model: nn.Module | None = None
    for name in LANGUAGE_MODEL_NAMES:
        language_model = language_model or getattr(base, name, None)
    if language_model is None:
        raise _refuse(model, f"it has no language model by the name of {' or '.join(LANGUAGE_MODEL_NAMES)}")
    if read_token_id(config, IMAGE_TOKEN_NAMES) < 0:
        raise _refuse(model, "its configuration has no image_token_id: no placeholder marks visual tokens")
    _check_arguments(model, base, language_model)
    _check_layers(model, language_model)
    return language_model


def _check_arguments(model: nn.Module, base: Any, language_model: Any) -> None:
    """UsageError for a forward that does not merge images into embeddings of ids."""
    taken = inspect.signature(base.forward).parameters
    if "input_ids" not in taken or "pixel_values" not in taken:
        raise _refuse(model, "its forward does not take input_ids and pixel_values")
    if "inputs_embeds" not in inspect.signature(language_model.forward).parameters:
        raise _refuse(model, "its language model takes no inputs_embeds")


def _check_layers(model: nn.Module, language_model: Any) -> None:
    """UsageError for layers that are not all self-attention over the sequence."""
    try:
        layers = decoder_layers(language_model)
    except (TypeError, AttributeError) as error:
        raise _refuse(model, f"its decoder layers are not to be found ({error})") from error
    config = language_model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    mixers = sorted(kind for kind in kinds if "attention" not in kind or "linear" in kind)
    if mixers:
        raise _refuse(model, f"it is a hybrid: layers of {', '.join(mixers)} keep a state of dropped tokens")
    if getattr(config, "hidden_size_per_layer_input", None):
        raise _refuse(
            model, "each of its layers reads inputs of its own for all tokens (per-layer embeddings)"
        )
    for number, layer in enumerate(layers):
        if any(name.endswith("indexer") for name, _ in layer.named_modules()):
            raise _refuse(model, f"layer {number} has sparse attention, whose index has a cache of its own")
        names = [name for name, _ in layer.named_children() if "cross" in name]
        if names:
            raise _refuse(model, f"layer {number} reads images by cross-attention ({names[0]})")
        try:
            find_attention(layer)
        except UsageError:
            raise _refuse(
                model, f"layer {number} has no attention that transformers dispatches by configuration"
            ) from None


def _refuse(model: nn.Module, reason: str) -> UsageError:
    """What to raise for a model that a pruner cannot act in."""
    return UsageError(f"pruning: {type(model).__name__}: {reason}; choose another model")
