"""All image-text-to-text classes of the installed transformers: their structure on the meta device, and their
language models in small."""

from collections.abc import Iterator

import torch
import transformers
from reuse_families import make_model
from reuse_models import FAMILY_SETTINGS
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

LAYERS = 3
SMALL = {
    "hidden_size": 512,  # four heads of 128, which rotary sections are made for
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "vocab_size_per_layer_input": 64,
    "hidden_size_per_layer_input": 8,
    "pad_token_id": 0,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "initializer_range": 0.3,
}


def build_on_meta() -> Iterator[tuple[str, PreTrainedModel | None]]:
    """Each `model_type` with a model of its default configuration; None where that makes no model."""
    for kind, name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.items():
        model_class = getattr(transformers, name)
        config_class = model_class.config_class or CONFIG_MAPPING[kind]
        model = None
        try:
            with torch.device("meta"):
                model = model_class(config_class())
        except Exception:  # defaults that are no model fail in any way
            if kind in FAMILY_SETTINGS:
                model = make_model(kind)
        yield kind, model


def shrink_language_model(language_model: PreTrainedModel) -> PreTrainedModel:
    """A small random one of the same class, on the CPU. An error where sizes are told otherwise."""
    config: PreTrainedConfig = type(language_model.config)()
    for name, value in SMALL.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        config.layer_types = kinds[:LAYERS]
    if getattr(config, "qk_rope_head_dim", None):  # latent attention has a key for each head
        config.num_key_value_heads = config.num_attention_heads
    sections = (getattr(config, "rope_parameters", None) or {}).get("mrope_section")
    if sections:
        config.head_dim = 2 * sum(sections)
    if "sliding_attention" in (kinds or ()):
        config.sliding_window = 64
    torch.manual_seed(0)
    return type(language_model)(config).eval()
