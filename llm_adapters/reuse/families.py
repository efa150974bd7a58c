"""What differs between the multimodal models that a compressor can be put into.

    tower -> patch features -> [the model's own reduction] -> projector -> placeholders

Each entry tells where the projector is and how to get around the model's own reduction. `raw` functions stand
in for the model's own ones while images are encoded and hand the patch features through. `base` is the model
without its language modeling head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from einops import rearrange
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from compressors.errors import UsageError
from connectors.versions import is_at_least

PatchGrid = tuple[int, int]
RawFunction = Callable[..., object]


def _pass_features(module: Any, features: Tensor, *levels: Tensor) -> Tensor:  # noqa: ARG001
    return torch.cat([features, *levels], -1)


def _group_windows(merger: Any, features: Tensor, *levels: Tensor) -> Tensor:
    """(patches, C) in windows of m x m -> (windows, m * m * C): windows are put in order after the merger."""
    window = merger.hidden_size // features.shape[-1]
    return rearrange(torch.cat([merger.ln_q(features), *levels], -1), "(n m) c -> n (m c)", m=window)


def _skip_packing(base: Any, image_features: Sequence[Tensor]) -> tuple[list[Tensor], None]:  # noqa: ARG001
    return list(image_features), None


def _make_patch_maps(base: Any, entry: Tensor, arguments: Mapping[str, Any], index: int) -> Tensor:  # noqa: ARG001
    """(..., patches, C), perhaps with a CLS token before them -> (n, H, W, C)."""
    pixel_height, pixel_width = arguments["pixel_values"].shape[-2:]
    patch_height, patch_width = _make_pair(base.config.vision_config.patch_size)
    height = pixel_height // patch_height
    width = pixel_width // patch_width
    # whole crops, counted from the end: a CLS token before them is left out
    patches = entry.shape[-2] // (height * width) * height * width
    maps = entry[..., entry.shape[-2] - patches :, :].flatten(0, -2)
    return rearrange(maps, "(n h w) c -> n h w c", h=height, w=width)


def _unmerge_windows(base: Any, entry: Tensor, arguments: Mapping[str, Any], index: int) -> Tensor:
    """(windows, m * m * C) of an image -> (1, H, W, C)."""
    merge = base.visual.spatial_merge_size
    _, grid_height, grid_width = arguments["image_grid_thw"][index]
    height = int(grid_height) // merge
    width = int(grid_width) // merge
    return rearrange(entry, "(n h w) (i j c) -> n (h i) (w j) c", h=height, w=width, i=merge, j=merge)


def _flatten_crops(
    _base: Any, tokens: Tensor, _arguments: Mapping[str, Any], _index: int, _grid: PatchGrid | None
) -> Tensor:
    return tokens.flatten(0, 1)


def _join_tiles(
    base: Any, tokens: Tensor, arguments: Mapping[str, Any], index: int, grid: PatchGrid | None
) -> Tensor:
    """(1 + tiles, N, D) -> thumbnail, then the tiles as one picture, unpadded, a newline after each row.
    Tokens without a grid stay tile after tile."""
    if grid is None:
        return tokens.flatten(0, 1)
    size = arguments["image_sizes"][index]
    rows, _ = get_anyres_image_grid_shape(
        size, base.config.image_grid_pinpoints, base.config.vision_config.image_size
    )
    whole = rearrange(tokens[1:], "(y x) (h w) d -> d (y h) (x w)", y=rows, h=grid[0])
    whole = unpad_image(whole, size)
    newlines = base.image_newline[:, None, None].expand(-1, whole.shape[1], 1).to(whole)
    picture = torch.cat([whole, newlines], -1)  # one at the end of each row
    return torch.cat([tokens[0], rearrange(picture, "d h w -> (h w) d")])


def _apply_projector(projector: Any, tokens: Tensor) -> Tensor:
    return projector(tokens)


def _project_gemma(projector: Any, tokens: Tensor) -> Tensor:
    return projector.mm_soft_emb_norm(tokens) @ projector.mm_input_projection_weight


@dataclass(frozen=True)
class ModelFamily:
    """Paths are below `base`. `maps` and `pack` get `base`, an entry of `pooler_output` or its tokens, the
    arguments of `get_image_features` and the entry's index; an entry is an image or, with Idefics, a row.

    projector, language_model, tower   paths
    processor      how placeholders are counted, in processors.py: fixed | tiles | grid
    raw            path of a module or method -> what stands in for it while images are encoded
    project        the model's own projector, after its reduction, on tokens (n, N, C')
    width          the C' it takes
    maps, pack     entry -> patch maps (n, H, W, C); tokens (n, N, D) and their grid -> entry (T, D)
    whole_images   `pack` mixes the crops of an image
    rope           positions follow the grid
    since          the oldest transformers in which it can be done
    """

    projector: str
    language_model: str = "language_model"
    tower: str = "vision_tower"
    processor: str = "fixed"
    raw: Mapping[str, RawFunction] = field(default_factory=dict)
    project: Callable[[Any, Tensor], Tensor] = _apply_projector
    width: Callable[[Any], int] = lambda projector: projector.linear_1.in_features
    maps: Callable[..., Tensor] = _make_patch_maps
    pack: Callable[..., Tensor] = _flatten_crops
    whole_images: bool = False
    rope: bool = False
    since: str = "5.0"


_IDEFICS_FAMILY = ModelFamily(
    "connector",
    "text_model",
    "vision_model",
    raw={"connector": _pass_features},
    project=lambda connector, tokens: connector.modality_projection(tokens),
    width=lambda connector: connector.modality_projection.proj.in_features,
)
_QWEN_FAMILY = ModelFamily(
    "visual.merger",
    tower="visual",
    processor="grid",
    raw={"visual.merger": _group_windows},
    project=lambda merger, tokens: merger.mlp(tokens),
    width=lambda merger: merger.mlp[0].in_features,
    maps=_unmerge_windows,
    rope=True,
    since="5.10",  # before, its processor cannot be told the counts
)
_RAW_PROJECTOR = {"multi_modal_projector": _pass_features}
# what a family's modules are called, its source in transformers says: models/FAMILY/modeling_FAMILY.py
FAMILIES = {
    "llava": ModelFamily("multi_modal_projector", raw=_RAW_PROJECTOR),
    "llava_next": ModelFamily(
        "multi_modal_projector",
        raw={**_RAW_PROJECTOR, "pack_image_features": _skip_packing},
        processor="tiles",
        pack=_join_tiles,
        whole_images=True,
    ),
    "internvl": ModelFamily("multi_modal_projector", raw={**_RAW_PROJECTOR, "pixel_shuffle": _pass_features}),
    "idefics3": _IDEFICS_FAMILY,
    "smolvlm": _IDEFICS_FAMILY,
    "paligemma": ModelFamily(
        "multi_modal_projector",
        raw=_RAW_PROJECTOR,
        since="5.4",  # before, it scales by itself
        width=lambda projector: projector.linear.in_features,
    ),
    "gemma3": ModelFamily(
        "multi_modal_projector",
        raw=_RAW_PROJECTOR,
        project=_project_gemma,
        width=lambda projector: projector.mm_input_projection_weight.shape[0],
    ),
    "qwen2_vl": _QWEN_FAMILY,
    "qwen2_5_vl": _QWEN_FAMILY,
}


def find_family(model: nn.Module) -> ModelFamily:
    """UsageError for a model that is none of them, with the names there are, or that PEFT has wrapped."""
    config: Any = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in FAMILIES:
        raise UsageError(f"model of type '{kind}': a compressor can be put into {', '.join(FAMILIES)}")
    if hasattr(model, "get_base_model"):
        raise UsageError(
            f"{type(model).__name__}: give model.get_base_model(); a compressor is attached "
            "before PEFT wraps the model"
        )
    if kind == "llava" and config.vision_config.model_type == "pixtral":
        raise UsageError(
            "llava with a pixtral tower: its images have grids of their own; choose a model "
            "with a CLIP or SigLIP tower"
        )
    family = FAMILIES[kind]
    if not is_at_least(family.since):
        raise UsageError(
            f"transformers {transformers.__version__}: a compressor can be put into {kind} from "
            f"{family.since} on; upgrade it"
        )
    return family


def read_tower_dim(base: Any) -> int:
    """Channels of the patch features."""
    vision = base.config.vision_config
    if hasattr(vision, "embed_dim") and base.config.model_type == "qwen2_vl":
        return vision.embed_dim  # its hidden_size is the LLM's
    layers = getattr(base.config, "vision_feature_layer", None)
    if isinstance(layers, (list, tuple)):  # several hidden states, side by side in the channels
        return vision.hidden_size * len(layers)
    return vision.hidden_size


def read_native_grid(base: Any) -> PatchGrid:
    """Patch grid of an image at the tower's own size."""
    vision = base.config.vision_config
    height, width = _make_pair(vision.image_size)
    patch_height, patch_width = _make_pair(vision.patch_size)
    return height // patch_height, width // patch_width


def _make_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size that may be one number."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
