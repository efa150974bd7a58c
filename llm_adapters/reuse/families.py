"""What differs between the multimodal models that a compressor can be put into.

    tower -> patch features -> [the model's own reduction] -> projector -> placeholders

Each entry tells where these parts are and how to get around the model's own reduction. The names of modules
are those of the family's source in transformers, models/FAMILY/modeling_FAMILY.py. `base` is the model
without its language modeling head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, Protocol

import torch
import transformers
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from compressors.errors import UsageError
from connectors.versions import is_at_least

PatchGrid = tuple[int, int]
# (module or base, patch features, *levels) -> what the model takes for the output of its own reduction
RawFunction = Callable[..., object]


class QwenMerger(Protocol):
    """Qwen-VL's reduction and projector in one: a norm, windows of m x m patches, a perceptron."""

    hidden_size: int  # of a window: m * m * C
    ln_q: nn.Module
    mlp: nn.Module


class IdeficsConnector(Protocol):
    """Idefics' reduction (pixel shuffle) and projector in one."""

    modality_projection: nn.Module


class GemmaProjector(Protocol):
    """Gemma's reduction (average pooling) and projector in one: a norm and a matrix (C, D)."""

    mm_soft_emb_norm: nn.Module
    mm_input_projection_weight: Tensor


@dataclass(frozen=True)
class ModelFamily:
    """Paths are below `base`. `maps` and `pack` get `base`, an entry of `pooler_output` or its tokens, the
    arguments of `get_image_features` and the entry's index; an entry is an image or, with Idefics, a row.

    projector, language_model, tower   paths
    width          the channels C' that the model's own projector takes, after its reduction
    project        that projector on tokens (n, N, C')
    raw            path of a module or method -> what stands in for it while images are encoded, so that the
                   patch features come through; the module or `base` is its first argument
    maps, pack     entry -> patch maps (n, H, W, C); tokens (n, N, D) and their grid -> entry (T, D)
    processor      how placeholders are counted, in processors.py
    whole_images   `pack` mixes the crops of an image
    rope           positions follow the grid
    since          the oldest transformers in which it can be done
    """

    projector: str
    width: Callable[[Any], int]
    project: Callable[[Any, Tensor], Tensor]
    raw: Mapping[str, RawFunction]
    maps: Callable[..., Tensor]
    pack: Callable[..., Tensor]
    language_model: str = "language_model"
    tower: str = "vision_tower"
    processor: Literal["fixed", "tiles", "grid"] = "fixed"
    whole_images: bool = False
    rope: bool = False
    since: str = "5.0"


def pass_features(module: nn.Module, features: Tensor, *levels: Tensor) -> Tensor:  # noqa: ARG001
    """Patch features (..., C) with a compressor's levels (..., C) beside them in the channels."""
    return torch.cat([features, *levels], -1)


def skip_packing(
    base: PreTrainedModel,  # noqa: ARG001
    image_features: Sequence[Tensor],
) -> tuple[list[Tensor], None]:
    """In the place of LLaVA-NeXT's `pack_image_features`: crops stay as they are; None for their sizes."""
    return list(image_features), None


def group_windows(merger: QwenMerger, features: Tensor, *levels: Tensor) -> Tensor:
    """(patches, C) in windows of m x m -> (windows, m * m * C): windows are put in order after the merger."""
    window = merger.hidden_size // features.shape[-1]
    channels = torch.cat([merger.ln_q(features), *levels], -1)
    return rearrange(channels, "(n m) c -> n (m c)", m=window)


def apply_projector(projector: nn.Module, tokens: Tensor) -> Tensor:
    """A projector that is nothing else."""
    return projector(tokens)


def apply_modality_projection(connector: IdeficsConnector, tokens: Tensor) -> Tensor:
    """What comes after the pixel shuffle in Idefics' connector."""
    return connector.modality_projection(tokens)


def apply_merger_mlp(merger: QwenMerger, tokens: Tensor) -> Tensor:
    """What comes after the windows in Qwen-VL's merger."""
    return merger.mlp(tokens)


def apply_gemma_projection(projector: GemmaProjector, tokens: Tensor) -> Tensor:
    """What comes after the pooling in Gemma's projector."""
    return projector.mm_soft_emb_norm(tokens) @ projector.mm_input_projection_weight


def read_gemma_width(projector: GemmaProjector) -> int:
    """Rows of Gemma's projection matrix."""
    return projector.mm_input_projection_weight.shape[0]


def make_patch_maps(
    base: PreTrainedModel,
    entry: Tensor,
    arguments: Mapping[str, Any],
    index: int,  # noqa: ARG001
) -> Tensor:
    """(..., patches, C), perhaps with a CLS token before them -> (n, H, W, C)."""
    pixel_height, pixel_width = arguments["pixel_values"].shape[-2:]
    patch_height, patch_width = _make_pair(base.config.vision_config.patch_size)
    height = pixel_height // patch_height
    width = pixel_width // patch_width
    # whole crops, counted from the end: a CLS token before them is left out
    patches = entry.shape[-2] // (height * width) * height * width
    first = entry.shape[-2] - patches
    maps = entry[..., first:, :].flatten(0, -2)
    return rearrange(maps, "(n h w) c -> n h w c", h=height, w=width)


def unmerge_windows(base: PreTrainedModel, entry: Tensor, arguments: Mapping[str, Any], index: int) -> Tensor:
    """(windows, m * m * C) of an image -> (1, H, W, C)."""
    merge = base.config.vision_config.spatial_merge_size
    _, grid_height, grid_width = arguments["image_grid_thw"][index]
    height = int(grid_height) // merge
    width = int(grid_width) // merge
    return rearrange(entry, "(n h w) (i j c) -> n (h i) (w j) c", h=height, w=width, i=merge, j=merge)


def flatten_crops(
    base: PreTrainedModel,  # noqa: ARG001
    tokens: Tensor,
    arguments: Mapping[str, Any],  # noqa: ARG001
    index: int,  # noqa: ARG001
    grid: PatchGrid | None,  # noqa: ARG001
) -> Tensor:
    """(crops, N, D) -> (crops * N, D)."""
    return tokens.flatten(0, 1)


def join_tiles(
    base: PreTrainedModel,
    tokens: Tensor,
    arguments: Mapping[str, Any],
    index: int,
    grid: PatchGrid | None,
) -> Tensor:
    """(1 + tiles, N, D) -> thumbnail, then the tiles as one picture, unpadded, a newline after each row.
    Tokens without a grid stay tile after tile."""
    if grid is None:
        return tokens.flatten(0, 1)
    size = arguments["image_sizes"][index]
    tile_rows, _ = get_anyres_image_grid_shape(
        size,
        base.config.image_grid_pinpoints,
        base.config.vision_config.image_size,
    )
    thumbnail = tokens[0]
    picture = rearrange(tokens[1:], "(y x) (h w) d -> d (y h) (x w)", y=tile_rows, h=grid[0])
    picture = unpad_image(picture, size)
    newline = base.get_parameter("image_newline")[:, None, None]
    newlines = newline.expand(-1, picture.shape[1], 1).to(picture)
    picture = torch.cat([picture, newlines], -1)  # one at the end of each row
    return torch.cat([thumbnail, rearrange(picture, "d h w -> (h w) d")])


# A CLIP or SigLIP tower and two linear layers; no reduction of its own: only the projector is in the way.
LLAVA = ModelFamily(
    projector="multi_modal_projector",
    width=attrgetter("linear_1.in_features"),
    project=apply_projector,
    raw={"multi_modal_projector": pass_features},
    maps=make_patch_maps,
    pack=flatten_crops,
)

# A thumbnail and tiles of each image. The model's own packing wants tiles of as many tokens as patches.
LLAVA_NEXT = ModelFamily(
    projector="multi_modal_projector",
    width=attrgetter("linear_1.in_features"),
    project=apply_projector,
    raw={
        "multi_modal_projector": pass_features,
        "pack_image_features": skip_packing,
    },
    maps=make_patch_maps,
    pack=join_tiles,
    processor="tiles",
    whole_images=True,
)

# The reduction is a pixel shuffle, a method of the model, before the projector.
INTERNVL = ModelFamily(
    projector="multi_modal_projector",
    width=attrgetter("linear_1.in_features"),
    project=apply_projector,
    raw={
        "multi_modal_projector": pass_features,
        "pixel_shuffle": pass_features,
    },
    maps=make_patch_maps,
    pack=flatten_crops,
)

# Idefics 3 and SmolVLM: the reduction, a pixel shuffle, is in the connector. An entry is a row of images.
IDEFICS = ModelFamily(
    projector="connector",
    width=attrgetter("modality_projection.proj.in_features"),
    project=apply_modality_projection,
    raw={"connector": pass_features},
    maps=make_patch_maps,
    pack=flatten_crops,
    language_model="text_model",
    tower="vision_model",
)

# One linear layer and no reduction of its own.
PALIGEMMA = ModelFamily(
    projector="multi_modal_projector",
    width=attrgetter("linear.in_features"),
    project=apply_projector,
    raw={"multi_modal_projector": pass_features},
    maps=make_patch_maps,
    pack=flatten_crops,
    since="5.4",  # before, it scales by itself
)

# The reduction, average pooling, is in the projector, whose weights are a bare matrix.
GEMMA3 = ModelFamily(
    projector="multi_modal_projector",
    width=read_gemma_width,
    project=apply_gemma_projection,
    raw={"multi_modal_projector": pass_features},
    maps=make_patch_maps,
    pack=flatten_crops,
)

# The tower merges windows of patches at its end and works in an order of windows; images have grids of their
# own size, and positions follow these.
QWEN_VL = ModelFamily(
    projector="visual.merger",
    width=attrgetter("mlp.0.in_features"),
    project=apply_merger_mlp,
    raw={"visual.merger": group_windows},
    maps=unmerge_windows,
    pack=flatten_crops,
    tower="visual",
    processor="grid",
    rope=True,
    since="5.10",  # before, its processor cannot be told the counts
)

# by `model_type` of the configuration
FAMILIES: dict[str, ModelFamily] = {
    "llava": LLAVA,
    "llava_next": LLAVA_NEXT,
    "internvl": INTERNVL,
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
    "paligemma": PALIGEMMA,
    "gemma3": GEMMA3,
    "qwen2_vl": QWEN_VL,
    "qwen2_5_vl": QWEN_VL,
}


def find_family(model: nn.Module) -> ModelFamily:
    """UsageError for a model that is none of them, with the names there are, or that PEFT has wrapped."""
    config: Any = getattr(model, "config", None)  # any module may be given, by mistake
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


def read_tower_dim(base: PreTrainedModel) -> int:
    """Channels of the patch features."""
    vision = base.config.vision_config
    if hasattr(vision, "embed_dim") and base.config.model_type == "qwen2_vl":
        return vision.embed_dim  # its hidden_size is the LLM's
    layers = getattr(base.config, "vision_feature_layer", None)
    if isinstance(layers, (list, tuple)):  # several hidden states, side by side in the channels
        return vision.hidden_size * len(layers)
    return vision.hidden_size


def read_native_grid(base: PreTrainedModel) -> PatchGrid:
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
