"""A vision tower of any family: from a configuration, or pretrained."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from connectors.hub import is_open_clip
from connectors.towers.base import VisionTower
from connectors.towers.config import as_vision_config
from connectors.towers.huggingface import build_hf, load_hf
from connectors.towers.open_clip import OpenClipVisionConfig, build_open_clip, load_open_clip


def build_tower(
    config: dict[str, Any] | PreTrainedConfig, select_layer: int = -2, attn_implementation: str | None = None
) -> VisionTower:
    """A tower with random weights, also under `torch.device("meta")`.

    `config`: a vision configuration (siglip_vision_model, clip_vision_model, dinov2, dinov2_with_registers,
    slothkit_open_clip_vision), a composite one that has a `vision_config`, or a dict with its "model_type".
    `attn_implementation`: transformers' names; None leaves the configuration's (sdpa). UsageError for bad
    input.
    """
    config = as_vision_config(config)
    if isinstance(config, OpenClipVisionConfig):
        return build_open_clip(config, select_layer, attn_implementation)
    return build_hf(config, select_layer, attn_implementation)


def load_tower(source: str | Path, select_layer: int = -2, dtype: torch.dtype | None = None) -> VisionTower:
    """A pretrained tower, in eval mode, with its preprocessing.

    `source`: a local directory or a hub id (a vision-only checkpoint or a whole CLIP or SigLIP one), or
    `open_clip:NAME[:TAG_OR_FILE]` (the tag may be left out when there is only one). `dtype` None: as stored.
    UsageError, in one line, for a source that cannot be found, reached or matched.
    """
    source = str(source)
    if is_open_clip(source):
        return load_open_clip(source, select_layer, dtype)
    return load_hf(source, select_layer, dtype)
