"""Vision towers from open_clip (and through it timm). open_clip is imported only when such a tower is built.

The model is a transformers PreTrainedModel around the ViT, so that it is initialised, loaded on the meta
device, saved and checkpointed within a composed model like any other part.
"""

import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from compressors.errors import UsageError, shorten_reason
from compressors.reading import check_regular_file
from connectors.hub import OPEN_CLIP_SCHEME, split_open_clip
from connectors.towers.base import VisionTower, count_blocks
from connectors.towers.config import check_square, load_weights, read_preprocessing
from connectors.towers.open_clip_vit import (
    build_vit,
    compute_hidden_states,
    count_prefix_tokens,
    list_blocks,
    read_geometry,
)


class OpenClipVisionConfig(PreTrainedConfig):
    """Which ViT, in open_clip's words. None: the named model's own.

    model_name          open_clip's name of the model
    num_hidden_layers   blocks
    vision_cfg          overrides of open_clip's CLIPVisionCfg: layers, width, head_width, image_size, ...
    timm_kwargs         overrides of the timm model's arguments: depth, embed_dim, num_heads, img_size, ...
    hidden_act          gelu | gelu_pytorch_tanh | quick_gelu
    image_mean, image_std, resample    preprocessing
    """

    model_type = "slothkit_open_clip_vision"
    base_config_key = "vision_config"

    def __init__(
        self,
        model_name: str = "ViT-SO400M-14-SigLIP-384",
        num_hidden_layers: int | None = None,
        vision_cfg: dict[str, Any] | None = None,
        timm_kwargs: dict[str, Any] | None = None,
        hidden_act: str | None = None,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        resample: str | None = None,
        **kwargs: Any,
    ):
        self.model_name = model_name
        self.num_hidden_layers = num_hidden_layers
        self.vision_cfg = vision_cfg
        self.timm_kwargs = timm_kwargs
        self.hidden_act = hidden_act
        self.image_mean = image_mean
        self.image_std = image_std
        self.resample = resample
        super().__init__(**kwargs)


class OpenClipVisionModel(PreTrainedModel):
    """Patch embedding, positions and blocks of an open_clip ViT."""

    config_class = OpenClipVisionConfig
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["Block", "EvaBlock", "EvaBlockPostNorm", "ResidualAttentionBlock"]

    def __init__(self, config: OpenClipVisionConfig):
        super().__init__(config)
        self.vit: Any = build_vit(
            config.model_name,
            vision_cfg=config.vision_cfg,
            timm_kwargs=config.timm_kwargs,
            hidden_act=config.hidden_act,
            depth=config.num_hidden_layers,
        )
        self.gradient_checkpointing = False
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: Any) -> None:
        super()._init_weights(module)  # linear maps, convolutions, norms, attention
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()  # timm's rotary tables: no checkpoint has them
        is_initialised = isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention))
        if is_initialised or "Norm" in type(module).__name__:
            return
        for name, parameter in module.named_parameters(recurse=False):  # positions, CLS, layer scale
            if name.startswith("gamma"):
                init.constant_(parameter, getattr(module, "init_values", None) or 1e-5)
            elif name.endswith("bias"):
                init.zeros_(parameter)
            else:
                init.normal_(parameter, std=0.02)

    def forward(self, pixel_values: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """(B, 3, h, w) -> the raw outputs of the blocks 1 <= index <= n, each (B, H * W, C)."""
        self.vit.set_grad_checkpointing(self.gradient_checkpointing and self.training)
        dtype = next(self.vit.parameters()).dtype
        return compute_hidden_states(self.vit, pixel_values.to(dtype), indices)


AutoConfig.register(OpenClipVisionConfig.model_type, OpenClipVisionConfig, exist_ok=True)
AutoModel.register(OpenClipVisionConfig, OpenClipVisionModel, exist_ok=True)


class OpenClipTower(VisionTower):
    """An open_clip ViT cut to the blocks it needs."""

    def __init__(
        self,
        backbone: OpenClipVisionModel,
        config: OpenClipVisionConfig,
        num_layers: int,
        select_layer: int,
    ):
        vit = read_geometry(backbone.vit)
        super().__init__(
            backbone,
            config,
            num_layers=num_layers,
            select_layer=select_layer,
            dim=vit.dim,
            patch_size=check_square(vit.patch_size, "patch_size"),
            image_size=check_square(vit.image_size, "image_size"),
            **read_preprocessing(config, vit.image_mean, vit.image_std, vit.resample),
        )
        self.num_prefix, self.has_cls = count_prefix_tokens(backbone.vit)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        return list_blocks(self.backbone.vit)

    def hidden_states(self, pixel_values: Tensor, indices: Sequence[int]) -> list[Tensor]:
        return self.backbone(pixel_values, indices)


def _cut_depth(config: OpenClipVisionConfig, select_layer: int) -> tuple[OpenClipVisionConfig, int]:
    """The configuration of the model actually built, and how many blocks the full one has."""
    with torch.device("meta"):
        num_layers = read_geometry(OpenClipVisionModel(config).vit).num_layers
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = count_blocks(select_layer, num_layers)
    return cut, num_layers


def build_open_clip(
    config: OpenClipVisionConfig, select_layer: int, attn_implementation: str | None = None
) -> OpenClipTower:
    """A tower with random weights."""
    if attn_implementation not in (None, "sdpa"):
        raise UsageError(f"attn_implementation='{attn_implementation}': open_clip towers have sdpa only")
    cut, num_layers = _cut_depth(config, select_layer)
    return OpenClipTower(OpenClipVisionModel(cut), config, num_layers, select_layer)


def load_saved_open_clip(
    source: str, config: OpenClipVisionConfig, select_layer: int, dtype: torch.dtype | None
) -> OpenClipTower:
    """A tower from a directory that `tower.backbone.save_pretrained` wrote (with the blocks it then had)."""
    cut, num_layers = _cut_depth(config, select_layer)
    backbone = load_weights(OpenClipVisionModel, source, cut, dtype)
    assert isinstance(backbone, OpenClipVisionModel)  # what `load_weights` was asked for
    return OpenClipTower(backbone, config, num_layers, select_layer).eval()


def load_open_clip(source: str, select_layer: int, dtype: torch.dtype | None) -> OpenClipTower:
    """A tower from `open_clip:NAME[:TAG_OR_FILE]`. The whole CLIP is in memory while it loads."""
    name, tag = split_open_clip(source)
    config = OpenClipVisionConfig(model_name=name)
    _cut_depth(config, select_layer)  # refuse bad input before anything is downloaded
    model, quick_gelu = load_whole_open_clip(name, tag)
    visual = model.visual
    preprocess = visual.preprocess_cfg
    config.image_mean = list(preprocess["mean"])
    config.image_std = list(preprocess["std"])
    config.resample = preprocess["interpolation"]
    config.hidden_act = "quick_gelu" if quick_gelu else None
    tower = build_open_clip(config, select_layer)
    # timm's models stand inside open_clip's TimmModel, as its `trunk`
    weights = {key.removeprefix("trunk."): value for key, value in visual.state_dict().items()}
    vit: Any = tower.backbone.vit
    vit.load_state_dict({key: weights[key] for key in vit.state_dict()})
    if dtype is not None:
        tower = tower.to(dtype)
    return tower.eval()


def load_whole_open_clip(name: str, tag: str) -> tuple[Any, bool]:
    """open_clip's whole model of a name with the weights of a tag or file, and whether it has the quick GELU.
    UsageError for weights that are not there."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    listed_tags = ", ".join(tags) or "none"
    source = f"{OPEN_CLIP_SCHEME}{name}"
    if not tag and len(tags) != 1:
        raise UsageError(f"{source}: say which weights, {source}:TAG_OR_FILE; tags: {listed_tags}")
    tag = tag or tags[0]
    if Path(tag).exists():
        check_regular_file(Path(tag))
    quick_gelu = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu"))
    try:
        return open_clip.create_model(name, pretrained=tag, force_quick_gelu=quick_gelu), quick_gelu
    except (RuntimeError, OSError, pickle.UnpicklingError) as error:
        raise UsageError(
            f"{source}:{tag}: {shorten_reason(error)}; give a checkpoint file, or where the hub can be "
            f"reached a tag: {listed_tags}"
        ) from error
