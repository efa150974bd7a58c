"""The text encoder of a model of open_clip. open_clip is imported only when such an encoder is built."""

from typing import Any

import torch
from torch import Tensor, nn

from compressors.errors import UsageError, shorten_reason
from compressors.selection import without_autocast
from connectors.hub import OPEN_CLIP_SCHEME, split_open_clip
from connectors.towers.open_clip import OpenClipVisionConfig, build_open_clip, load_whole_open_clip
from connectors.towers.open_clip_vit import is_native
from connectors.towers.text import ADVICE, TextEncoder

OPEN_CLIP = "open_clip"


class OpenClipTextEncoder(TextEncoder):
    """Text model and projections of an open_clip model, without its image encoder's blocks."""

    def __init__(self, model: Any, name: str, quick_gelu: bool, patch_dim: int):
        nn.Module.__init__(self)
        self.config = {"model_type": OPEN_CLIP, "model_name": name, "quick_gelu": quick_gelu}
        self._patch_dim = patch_dim
        self.dim: int = read_model_config(name)["embed_dim"]
        self.model = model
        drop_blocks(model.visual)
        nn.Module.requires_grad_(self, False)

    @property
    def patch_dim(self) -> int:
        return self._patch_dim

    @property
    def length(self) -> int:
        length: int = self.model.context_length
        return length

    @torch.no_grad()
    def encode_text(self, ids: Tensor) -> Tensor:
        text = getattr(self.model, "text", self.model)
        mask = getattr(text, "attn_mask", None)
        if mask is not None:  # in no checkpoint, and nothing where a model was made without memory
            width = mask.shape[-1]
            causal = torch.full_like(mask, -torch.inf, device=ids.device).triu(1)
            text.register_buffer("attn_mask", causal.view(width, width), persistent=False)
        with without_autocast(ids.device.type):
            embeddings: Tensor = self.model.encode_text(ids)
        return embeddings

    @torch.no_grad()
    def project_patches(self, patches: Tensor) -> Tensor:
        visual = self.model.visual
        states = patches.to(next(visual.parameters()).dtype)
        with without_autocast(patches.device.type):
            if is_native_visual(visual):
                projected: Tensor = visual.ln_post(states) @ visual.proj
                return projected
            alone = states.reshape(-1, 1, states.shape[-1])
            pooled = visual.head(visual.trunk.forward_head(visual.trunk.norm(alone)))
        projected = pooled.view(*states.shape[:-1], self.dim)
        return projected


def is_native_visual(visual: Any) -> bool:
    """open_clip's own image tower, not one of timm's."""
    return not hasattr(visual, "trunk")


def drop_blocks(visual: Any) -> None:
    """Takes away what comes before the norm: patches come from the tower."""
    if is_native_visual(visual):
        visual.conv1 = visual.ln_pre = visual.transformer = nn.Identity()
        visual.class_embedding = visual.positional_embedding = None
        return
    trunk = visual.trunk
    trunk.patch_embed = nn.Identity()
    trunk.blocks = nn.Sequential()
    for name in ("pos_embed", "cls_token", "reg_token"):
        if getattr(trunk, name, None) is not None:
            setattr(trunk, name, None)


def read_model_config(name: str) -> dict[str, Any]:
    """open_clip's configuration of a model by name."""
    import open_clip

    config: dict[str, Any] = open_clip.get_model_config(name)
    return config


def find_patch_dim(name: str) -> int:
    """Channels of the patches of a model's tower. UsageError for an unknown name, for a tower that is no ViT,
    and for one whose single patches cannot be taken into the space of the text."""
    config = OpenClipVisionConfig(model_name=name)
    with torch.device("meta"):
        tower = build_open_clip(config, -1)
    vit: Any = tower.backbone.vit
    pool = read_model_config(name)["vision_cfg"].get("timm_pool", "")
    takes_single_patches = is_native(vit) or pool in ("map", "token", "")
    if not takes_single_patches or read_model_config(name)["vision_cfg"].get("attentional_pool"):
        raise UsageError(
            f"{OPEN_CLIP_SCHEME}{name}: its image encoder pools patches together before the space of the "
            f"text, where a single one has no place; {ADVICE}"
        )
    return tower.dim


def describe_open_clip_text(source: str) -> dict[str, Any]:
    """What `build_open_clip_text` takes, for a source. UsageError for one that has no such encoder."""
    name, _ = split_open_clip(source)
    find_patch_dim(name)
    quick_gelu = bool(read_model_config(name).get("quick_gelu"))
    return {"model_type": OPEN_CLIP, "model_name": name, "quick_gelu": quick_gelu}


def build_open_clip_text(name: str, quick_gelu: bool) -> OpenClipTextEncoder:
    """One with random weights, also under `torch.device("meta")`."""
    import open_clip

    patch_dim = find_patch_dim(name)
    options = {"force_quick_gelu": quick_gelu, "pretrained_text": False}
    # which may be none at all
    try:
        model = open_clip.create_model(name, device=torch.get_default_device(), **options)
    except (OSError, ValueError, RuntimeError) as error:  # a text model of the hub, which is out of reach
        reason = shorten_reason(error)
        raise UsageError(
            f"{OPEN_CLIP_SCHEME}{name}: its text encoder is not to be had: {reason}; {ADVICE}"
        ) from error
    return OpenClipTextEncoder(model, name, quick_gelu, patch_dim).eval()


def load_open_clip_text(source: str) -> OpenClipTextEncoder:
    """That of `open_clip:NAME[:TAG_OR_FILE]`, in eval mode."""
    name, tag = split_open_clip(source)
    patch_dim = find_patch_dim(name)
    model, quick_gelu = load_whole_open_clip(name, tag)
    return OpenClipTextEncoder(model, name, quick_gelu, patch_dim).eval()
