"""The text encoder of a tower of any family: from a configuration, or pretrained."""

import copy
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig

from compressors.errors import UsageError
from connectors.hub import is_open_clip
from connectors.pretrained import load_model, load_pretrained, reset_outputs
from connectors.towers.open_clip_text import (
    OPEN_CLIP,
    build_open_clip_text,
    describe_open_clip_text,
    load_open_clip_text,
)
from connectors.towers.text import ADVICE, TextEncoder

# whole checkpoints of transformers, by the `model_type` of their configuration
MODELS = {"clip": "CLIPModel", "siglip": "SiglipModel"}


def cut_vision(config: PreTrainedConfig) -> PreTrainedConfig:
    """The configuration of the model actually built, without blocks of the image encoder."""
    cut: Any = copy.deepcopy(config)
    cut.vision_config.num_hidden_layers = 0
    for part in (cut, cut.vision_config, cut.text_config):
        reset_outputs(part)
    return cut


def build_text_encoder(config: dict[str, Any] | PreTrainedConfig) -> TextEncoder:
    """One with random weights, also under `torch.device("meta")`. `config`: of a whole CLIP or SigLIP, an
    object or a dictionary."""
    if isinstance(config, dict):
        if config["model_type"] == OPEN_CLIP:
            return build_open_clip_text(config["model_name"], config["quick_gelu"])
        config = AutoConfig.for_model(**config)
    model_class = getattr(transformers, MODELS[config.model_type])
    return TextEncoder(model_class(cut_vision(config))).eval()


def read_text_config(source: str | Path, where: str) -> PreTrainedConfig | dict[str, Any]:
    """The configuration of a whole checkpoint, a folder, of the hub or of open_clip, whose has the model's
    name. UsageError, from `where`, for one without a text encoder."""
    if is_open_clip(source):
        return describe_open_clip_text(str(source))
    config = load_pretrained(AutoConfig, source, where, ADVICE)
    if config.model_type not in MODELS:
        raise UsageError(f"{where}: a '{config.model_type}' has no text encoder of its own; {ADVICE}")
    assert isinstance(config, PreTrainedConfig)  # AutoConfig's
    return config


def load_text_encoder(source: str | Path, where: str) -> TextEncoder:
    """The text encoder of a whole checkpoint, in eval mode and float32, however it is stored: it is small,
    and patches alike differ in the last digits. UsageError, from `where`, for one without, and for weights
    that are missing or unreadable."""
    if is_open_clip(source):
        return load_open_clip_text(str(source)).float()
    whole = read_text_config(source, where)
    assert isinstance(whole, PreTrainedConfig)  # as of all that are not open_clip's
    config = cut_vision(whole)
    model_class = getattr(transformers, MODELS[config.model_type])
    options: dict[str, Any] = {"config": config, "dtype": torch.float32}
    model = load_model(model_class, source, where, "save the whole model there again", **options)
    return TextEncoder(model).eval()
