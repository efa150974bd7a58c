"""Vision towers from transformers: SigLIP (SigLIP 2 at fixed resolution is the same class), CLIP, DINOv2.

A family is a row of `FAMILIES`. The GELU variant is the configuration's `hidden_act`: SigLIP through timm
or open_clip equals `hidden_act="gelu"`; transformers' default, the released FlashSloth's, is the tanh one.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.image_processing_base import ImageProcessingMixin

from compressors.errors import UsageError, shorten_reason
from connectors.pretrained import load_pretrained, reset_outputs
from connectors.towers.base import VisionTower, count_blocks
from connectors.towers.config import (
    as_vision_config,
    check_square,
    find_preprocessing,
    load_weights,
    read_preprocessing,
)
from connectors.towers.open_clip import OpenClipVisionConfig, load_saved_open_clip
from connectors.towers.open_clip_vit import OPENAI_MEAN, OPENAI_STD
from connectors.versions import find_vision_blocks, find_vision_model, find_vision_parts

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Family:
    """model         class in transformers
    norm          its final norm, dropped
    mean, std     preprocessing unless the configuration says otherwise
    interpolate   its forward must be told to interpolate positions
    without       configuration that leaves out what no patch feature needs
    has_cls       a CLS token comes first
    """

    model: str
    norm: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolate: bool = False
    without: dict[str, Any] = field(default_factory=dict)
    has_cls: bool = True

    @property
    def unused(self) -> tuple[str, ...]:
        """Weights that are dropped after loading."""
        names = [f"{self.norm}.", "embeddings.mask_token"]
        older_names = [f"vision_model.{name}" for name in names]  # of transformers before 5.6
        return (*names, *older_names)


FAMILIES = {
    "siglip_vision_model": Family(
        "SiglipVisionModel",
        "post_layernorm",
        mean=HALF,
        std=HALF,
        interpolate=True,
        without={"vision_use_head": False},
        has_cls=False,
    ),
    "clip_vision_model": Family(
        "CLIPVisionModel", "post_layernorm", OPENAI_MEAN, OPENAI_STD, interpolate=True
    ),
    "dinov2": Family("Dinov2Model", "layernorm", *IMAGENET, without={"use_mask_token": False}),
    "dinov2_with_registers": Family("Dinov2WithRegistersModel", "layernorm", *IMAGENET),
}


class HfTower(VisionTower):
    """A transformers vision model cut to the blocks it needs, without final norm, head and mask token."""

    def __init__(self, backbone: PreTrainedModel, config: PreTrainedConfig, select_layer: int):
        family = FAMILIES[config.model_type]
        super().__init__(
            find_vision_model(backbone),
            config,
            num_layers=config.num_hidden_layers,
            select_layer=select_layer,
            dim=config.hidden_size,
            patch_size=check_square(config.patch_size, "patch_size"),
            image_size=check_square(config.image_size, "image_size"),
            **read_preprocessing(config, family.mean, family.std),
        )
        self._options = {"interpolate_pos_encoding": True} if family.interpolate else {}
        parts: Any = find_vision_parts(backbone)
        setattr(parts, family.norm, nn.Identity())
        self.has_cls = family.has_cls
        self.num_prefix = int(family.has_cls) + getattr(config, "num_register_tokens", 0)
        mask = getattr(parts.embeddings, "mask_token", None)
        if mask is not None:  # no parameter, but there: transformers before 5.6 initialises it
            del parts.embeddings.mask_token
            parts.embeddings.register_buffer("mask_token", mask.detach(), persistent=False)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list(find_vision_blocks(self.backbone))

    def hidden_states(self, pixel_values: Tensor, indices: Sequence[int]) -> list[Tensor]:
        if list(indices) == [self.depth]:
            return [self.backbone(pixel_values, **self._options).last_hidden_state]
        blocks = self.blocks
        states: dict[nn.Module, Tensor] = {}

        def keep(block: nn.Module, args: tuple, output: Tensor) -> None:  # noqa: ARG001
            states[block] = output

        hooks = [blocks[index - 1].register_forward_hook(keep) for index in indices]
        try:
            self.backbone(pixel_values, **self._options)
        finally:
            for hook in hooks:
                hook.remove()
        return [states[blocks[index - 1]] for index in indices]


def _model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of a family; UsageError for a model type that is none."""
    if config.model_type not in FAMILIES:
        listed = ", ".join([*FAMILIES, "slothkit_open_clip_vision"])
        raise UsageError(f"'{config.model_type}' is no vision tower known here; known: {listed}")
    return getattr(transformers, FAMILIES[config.model_type].model)


def _cut(
    config: PreTrainedConfig, select_layer: int, attn_implementation: str | None = None
) -> PreTrainedConfig:
    """The configuration of the model actually built."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = count_blocks(select_layer, config.num_hidden_layers)
    cut.image_size = check_square(config.image_size, "image_size")
    cut.patch_size = check_square(config.patch_size, "patch_size")
    for key, value in FAMILIES[config.model_type].without.items():
        setattr(cut, key, value)
    if attn_implementation is not None:
        cut._attn_implementation = attn_implementation
    reset_outputs(cut)
    return cut


def build_hf(config: PreTrainedConfig, select_layer: int, attn_implementation: str | None) -> HfTower:
    """A tower with random weights."""
    model_class = _model_class(config)
    return HfTower(model_class(_cut(config, select_layer, attn_implementation)), config, select_layer)


def load_hf(source: str, select_layer: int, dtype: torch.dtype | None) -> VisionTower:
    """A tower from a local directory or the hub, in eval mode."""
    config = as_vision_config(
        load_pretrained(AutoConfig, source, f"vision tower '{source}'", _advise(source))
    )
    for key, value in read_saved_preprocessing(source).items():
        setattr(config, key, value)
    if isinstance(config, OpenClipVisionConfig):
        return load_saved_open_clip(source, config, select_layer, dtype)
    model_class = _model_class(config)
    cut = _cut(config, select_layer)
    backbone = load_weights(model_class, source, cut, dtype, FAMILIES[config.model_type].unused)
    return HfTower(backbone, config, select_layer).eval()


def _advise(source: str) -> str:
    """What to do about a source that cannot be loaded: damaged, not there, or out of reach."""
    if Path(source, "config.json").is_file():
        return "save the tower there again"
    if source.startswith(("/", ".", "~")):
        return "no such directory, or it has no config.json"
    return f"give a local directory, or fetch it first where the hub can be reached (hf download {source})"


def read_saved_preprocessing(source: str) -> dict[str, Any]:
    """image_mean, image_std and resample of the checkpoint's image processor, those it states. UsageError for
    a damaged one."""
    path = Path(source, "preprocessor_config.json")
    try:
        values, _ = ImageProcessingMixin.get_image_processor_dict(source)
    except OSError as error:
        if path.is_file():
            raise UsageError(f"{path}: {shorten_reason(error)}; save the processor there again") from error
        return {}  # no processor beside the weights: the family's defaults hold
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a JSON object; save the processor there again")
    return find_preprocessing(values, str(path))
