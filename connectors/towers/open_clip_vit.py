"""ViTs as open_clip describes them: its own VisionTransformer, or one of timm's (SigLIP, EVA, PE, ViTamin).

Only patch embedding, positions and blocks are kept. Hierarchical towers (ResNet, ConvNeXt, FastViT, Swin)
have no constant patch grid through their depth and are refused.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.errors import UsageError, shorten_reason
from compressors.registry import suggest

TIMM_ACT = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu"}
# CLIP's preprocessing, arXiv 2103.00020
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


def build_vit(
    model_name: str,
    vision_cfg: dict | None = None,
    timm_kwargs: dict | None = None,
    hidden_act: str | None = None,
    depth: int | None = None,
) -> nn.Module:
    """The ViT of open_clip's `model_name`, random weights, `depth` blocks (None: all), raw output.

    `vision_cfg` overrides fields of open_clip's CLIPVisionCfg, `timm_kwargs` arguments of the timm model.
    UsageError for an unknown name, a field that does not exist, or a tower that is no ViT.
    """
    import open_clip

    model_config = open_clip.get_model_config(model_name)
    if model_config is None:
        close = suggest(model_name, open_clip.list_models())
        raise UsageError(f"open_clip has no model '{model_name}'{close}")
    if hidden_act is not None and hidden_act not in TIMM_ACT:
        raise UsageError(f"hidden_act='{hidden_act}'{suggest(hidden_act, TIMM_ACT)}")
    fields = {**model_config["vision_cfg"], **(vision_cfg or {})}
    try:
        if fields.get("timm_model_name"):
            return _build_timm_vit(fields["timm_model_name"], dict(timm_kwargs or {}), hidden_act, depth)
        quick_gelu = hidden_act == "quick_gelu"
        if hidden_act is None:
            quick_gelu = model_config.get("quick_gelu", False)
        if hidden_act == "gelu_pytorch_tanh":
            fields["act_kwargs"] = {"approximate": "tanh"}
        return _build_native_vit(model_config["embed_dim"], fields, quick_gelu, depth)
    except TypeError as error:
        raise UsageError(
            f"open_clip '{model_name}' gives no vision tower (which must be a ViT): {shorten_reason(error)}"
        ) from error


def _build_timm_vit(name: str, arguments: dict, hidden_act: str | None, depth: int | None) -> nn.Module:
    import timm

    if not timm.is_model(name):
        raise TypeError(f"timm has no model '{name}'")
    if hidden_act is not None:
        arguments["act_layer"] = TIMM_ACT[hidden_act]
    if depth is not None:
        arguments["depth"] = depth
    vit = timm.create_model(name, num_classes=0, global_pool="", dynamic_img_size=True, **arguments)
    if not hasattr(vit, "blocks"):
        raise TypeError(f"timm's {name} has no blocks")
    vit.norm = vit.fc_norm = nn.Identity()
    return vit


def _build_native_vit(embed_dim: int, fields: dict, quick_gelu: bool, depth: int | None) -> nn.Module:
    import open_clip

    if not isinstance(fields.get("layers", 12), int):
        raise TypeError("it is a ResNet, not a ViT")
    if depth is not None:
        fields["layers"] = depth
    text = open_clip.CLIPTextCfg(context_length=1, vocab_size=1, width=8, heads=1, layers=1)
    vision = open_clip.CLIPVisionCfg(**{**fields, "patch_dropout": 0.0})
    vit = open_clip.CLIP(embed_dim, vision, text, quick_gelu=quick_gelu).visual
    # what follows the blocks: features are their raw output
    vit.ln_post = nn.Identity()
    vit.proj = None
    vit.attn_pool = vit.attn_pool_contrastive = None
    return vit


@dataclass(frozen=True)
class Geometry:
    """What a ViT says about itself: blocks, channels, pixels, and the preprocessing of its architecture."""

    num_layers: int
    dim: int
    patch_size: tuple[int, int]
    image_size: tuple[int, int]
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    resample: str


def read_geometry(vit: Any) -> Geometry:
    """Sizes of a ViT that `build_vit` gave."""
    if is_native(vit):
        return Geometry(
            num_layers=len(vit.transformer.resblocks),
            dim=vit.transformer.width,
            patch_size=vit.patch_size,
            image_size=vit.image_size,
            image_mean=OPENAI_MEAN,
            image_std=OPENAI_STD,
            resample="bicubic",
        )
    defaults = vit.default_cfg
    return Geometry(
        num_layers=len(vit.blocks),
        dim=vit.embed_dim,
        patch_size=tuple(vit.patch_embed.feat_ratio(as_scalar=False)),
        image_size=vit.patch_embed.img_size,
        image_mean=defaults["mean"],
        image_std=defaults["std"],
        resample=defaults["interpolation"],
    )


def list_blocks(vit: Any) -> list[nn.Module]:
    """The blocks of a ViT that `build_vit` gave."""
    return list(vit.transformer.resblocks if is_native(vit) else vit.blocks)


def count_prefix_tokens(vit: Any) -> tuple[int, bool]:
    """Tokens before the patches inside a ViT that `build_vit` gave, and whether the first is CLS."""
    if is_native(vit):
        return 1, True
    return vit.num_prefix_tokens, vit.cls_token is not None


def is_native(vit: nn.Module) -> bool:
    """open_clip's own VisionTransformer, not timm's."""
    return hasattr(vit, "transformer")


def compute_hidden_states(vit: Any, pixel_values: Tensor, indices: Sequence[int]) -> list[Tensor]:
    """Raw outputs (B, H * W, C) of the blocks 1 <= index <= n for (B, 3, h, w), in the order of `indices`.

    Only whole patches are read; other than native sizes interpolate the position embedding (timm's bicubic
    with antialiasing, where transformers' SigLIP, CLIP and DINOv2 have none: there the two differ slightly).
    """
    patch = read_geometry(vit).patch_size
    height, width = pixel_values.shape[-2:]
    patch_height, patch_width = patch
    # pixels beyond the last whole patch would make timm pad or refuse
    pixel_values = pixel_values[
        ..., : height // patch_height * patch_height, : width // patch_width * patch_width
    ]
    order = sorted(set(indices))
    take = [index - 1 for index in order]
    if is_native(vit):
        states = vit.transformer.forward_intermediates(_embed_patches(vit, pixel_values), indices=take)[1]
        states = [state[:, 1:] for state in states]  # without CLS
    else:
        options = {"norm": False, "output_fmt": "NLC", "intermediates_only": True}
        states = vit.forward_intermediates(pixel_values, indices=take, **options)
    state_of_block = dict(zip(order, states))
    return [state_of_block[index] for index in indices]


def _embed_patches(vit: Any, pixel_values: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, 1 + H * W, C) for open_clip's own ViT, which knows no size but its native one."""
    from timm.layers import resample_abs_pos_embed

    patches = vit.conv1(pixel_values)
    grids = {"new_size": list(patches.shape[-2:]), "old_size": list(vit.grid_size)}
    positions = resample_abs_pos_embed(vit.positional_embedding[None], **grids, num_prefix_tokens=1)
    cls = vit.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
    tokens = torch.cat([cls, rearrange(patches, "b c h w -> b (h w) c")], dim=1)
    return vit.ln_pre(tokens + positions.to(patches.dtype))
