"""What differs between versions of transformers, 5.0 and later: where the toolkit asks which one is there.

    pip install --target /tmp/old transformers==5.0.0 && PYTHONPATH=/tmp/old python -m pytest

runs the tests on another one. What a version cannot do is skipped there, and refused in one line.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor


def is_at_least(version: str) -> bool:
    """Whether the transformers that is installed is this version or a later one."""
    return Version(transformers.__version__) >= Version(version)


# What a forward pass calls the KV cache that it is given, and the one in its output.
CACHE = "cache" if is_at_least("5.24") else "past_key_values"


def read_cache(arguments: Mapping[str, Any]) -> Cache | None:
    """The KV cache among a forward's arguments; 5.24 and later take it by its old name, too."""
    return arguments.get(CACHE, arguments.get("past_key_values"))


def find_pil_class(name: str) -> type[BaseImageProcessor] | None:
    """The image processor that works through PIL. Before 5.4 the plain name was that one, and the torchvision
    one ended in Fast. None: transformers has none of that name."""
    old = getattr(transformers, name.removesuffix("Fast"), None)
    return getattr(transformers, f"{name}Pil", old)


def switch_checkpointing(model: PreTrainedModel, what: str, *options: dict) -> None:
    """ "enable" or "disable": keep a layer's input alone and compute the rest of it again. Its name was
    gradient checkpointing up to 5.22; a composed model's reaches all of its parts."""
    old = getattr(model, f"gradient_checkpointing_{what}", None)
    switch: Any = getattr(model, f"activation_checkpointing_{what}", old)
    switch(*options)


@contextmanager
def allow_meta_forward() -> Iterator[None]:
    """A forward pass on the meta device: before 5.4 transformers asks whether autocast is on there, which
    torch does not know."""
    is_autocast_enabled = torch.is_autocast_enabled

    def is_on(*device: str) -> bool:
        return device != ("meta",) and is_autocast_enabled(*device)

    if not is_at_least("5.4"):
        torch.is_autocast_enabled = is_on  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.is_autocast_enabled = is_autocast_enabled


def find_vision_parts(model: PreTrainedModel) -> nn.Module:
    """What has a vision model's embedding and blocks: until 5.6 SigLIP and CLIP had them a level deeper."""
    return getattr(model, "vision_model", model)


def map_vision_names(model_type: str) -> dict[str, str] | None:
    """`key_mapping` of `from_pretrained`, for vision models whose weights were saved by 5.6 or later."""
    if is_at_least("5.6") or model_type not in ("siglip_vision_model", "clip_vision_model"):
        return None
    return {r"^(embeddings|encoder|pre_layrnorm|post_layernorm|head)\.": r"vision_model.\1."}


def find_vision_blocks(model: nn.Module) -> nn.ModuleList:
    """A vision model's blocks, the only list of modules it has: `encoder.layers` or `encoder.layer`."""
    return next(part for part in model.modules() if isinstance(part, nn.ModuleList))


def find_vision_model(model: PreTrainedModel) -> PreTrainedModel:
    """The innermost that is a model of its own: its weights have today's names (but for CLIP before 5.6)."""
    parts = find_vision_parts(model)
    return parts if isinstance(parts, PreTrainedModel) else model
