"""What differs between the multimodal models that a compressor can be put into.

    tower -> patch features -> [the model's own reduction] -> projector -> placeholders

An entry tells where these parts are and how to get around the model's own reduction. The names of modules are
those of the family's source in transformers, models/FAMILY/modeling_FAMILY.py. `base` is the model without
its language modeling head.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from compressors.errors import UsageError
from llm_adapters.adapter import find_module_list

PatchGrid = tuple[int, int]
# (module or base, patch features, *levels) -> what the model takes for the output of its own reduction
RawFunction = Callable[..., object]


def read_tower_dim(base: PreTrainedModel) -> int:
    """Channels of the patch features: the tower's width."""
    width = base.config.vision_config.hidden_size
    layers = getattr(base.config, "vision_feature_layer", None)
    if isinstance(layers, (list, tuple)):  # several hidden states, side by side in the channels
        return width * len(layers)
    return width


def read_feature_layer(base: PreTrainedModel) -> int | Sequence[int]:
    """The hidden state of the tower, or several, that the patch features are; by default the last."""
    layer: int | Sequence[int] = getattr(base.config, "vision_feature_layer", -1)
    return layer


def read_native_grid(base: PreTrainedModel) -> PatchGrid:
    """Patch grid of an image at the tower's own size."""
    vision = base.config.vision_config
    height, width = make_pair(vision.image_size)
    patch_height, patch_width = read_patch_size(base)
    return height // patch_height, width // patch_width


def read_patch_size(base: PreTrainedModel) -> tuple[int, int]:
    """(height, width) of a patch in pixels."""
    return make_pair(base.config.vision_config.patch_size)


def find_tower_blocks(tower: Any) -> Sequence[nn.Module]:
    """A tower's blocks: the first list of as many modules as its configuration says. UsageError for a tower
    without."""
    config = tower.config
    count = getattr(config, "num_hidden_layers", None) or getattr(config, "depth", None)
    blocks = find_module_list(tower, count) if count else None
    if blocks is None:
        raise UsageError(
            f"levels: {type(tower).__name__} has no list of blocks; choose a compressor that reads "
            "the tower's output alone"
        )
    return list(blocks)


def read_merge_size(base: PreTrainedModel) -> int:
    """Patches, by side, that the sides of images are a multiple of where these have grids of their own."""
    config = base.config
    for part in (config.vision_config, config):
        for name in ("spatial_merge_size", "pooling_kernel_size"):  # the second is Gemma 4's
            merge: int | None = getattr(part, name, None)
            if merge:
                return merge
    kernel: Sequence[int] = getattr(config.vision_config, "merge_kernel_size", (1, 1))  # Kimi's
    return kernel[0]


def keep_size(base: PreTrainedModel) -> int:  # noqa: ARG001
    """The rate of a model without a reduction of its own."""
    return 1


def keep_entries(
    base: PreTrainedModel,  # noqa: ARG001
    entries: Sequence[Tensor],
    arguments: Mapping[str, Any],  # noqa: ARG001
) -> Sequence[Tensor]:
    """Of a family whose entries are of one size within."""
    return entries


def make_pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size that may be one number."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width


# of a family's `processor`: images have patch grids of their own
RAGGED = ("grid", "sizes", "padded", "positions")


@dataclass(frozen=True)
class DeepStack:
    """`mergers` is the path of their list, `raw` and `project` are as a family's, for one of them."""

    mergers: str
    raw: RawFunction
    project: Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class VideoFrames:
    """How the frames of a video go through the compressor, where the model encodes videos apart from images.
    A frame is what has placeholders of its own: a patch of time, of two frames or more in some families.

    maps, pack     as a family's, of a video, whose frames are its crops; arguments have the names of images'
    pooling        path of a module that makes frames smaller before the projector: the compressor is in its
                   place
    keeps_raw      as a family's, (frames, patches, C) of all videos
    mean_of_time   the mean over the frames that become one (frames of all, patches, C), by the grids (n, 3)
    """

    maps: Callable[..., Tensor]
    pack: Callable[..., Tensor]
    pooling: str | None = None
    keeps_raw: bool = False
    mean_of_time: Callable[[Tensor, Tensor], Tensor] | None = None
    whole_images: ClassVar[bool] = True  # a query module reads a video as one


@dataclass(frozen=True)
class ModelFamily:
    """Paths are below `base`. `maps` and `pack` get `base`, an entry of `pooler_output` or its tokens, the
    arguments of `get_image_features` and the entry's index; an entry is an image or, with Idefics, a row.

    projector, language_model, tower   paths
    width          the channels C' that the model's own projector takes, after its reduction; 0 where it makes
                   no tokens for the LLM, so that a new one is needed
    project        that projector on tokens (n, N, C')
    raw            path of a module or method -> what stands in for it while images are encoded, so that the
                   patch features come through; the module or `base` is its first argument
    maps, pack     entry -> patch maps (n, H, W, C); tokens (n, N, D) and their grid -> entry (T, D)
    split          what has come for `pooler_output` -> its entries
    features       path of the module whose output the patch features are, where the modules of `raw` get them
                   reduced already; it is then among their arguments, behind what they get
    keeps_raw      the model reshapes what the projector makes, so that raw features do not come through: they
                   are kept aside, (n, patches, C), beside the projector's own output
    feature_layer  which hidden state of the tower (-1: the last block's) the patch features are, where its
                   patches are in raster order; None: cues of the tower are not read
    deepstack      features of earlier blocks that are added to visual tokens in the LLM's first layers
    per_layer_table, id_embedders   paths of what looks up ids beside the LLM's embeddings: a table for all of
                   its layers, and modules for ids beyond words, from their `vocab_offset` on
    processor      how placeholders are counted: a kind of `counting`
    own_rate       patches that become one token, by side, in the model's own reduction
    dim, grid, patch_size, blocks      of the tower: channels of the patch features, the patch grid of an
                   image of its own size, pixels of a patch, its blocks
    whole_images   `pack` mixes the crops of an image
    rope           positions follow the grid
    hands_options  the model's forward hands what it does not name, such as `interpolate_pos_encoding`, on to
                   the tower; others keep it from there
    mixes_beams    `generate` of its class mixes up the images of a row that has several as it repeats it
    videos         how frames are compressed; None: videos that the model encodes apart are refused. Frames
                   that a processor gives as images need nothing
    keeps_names    weights are saved under the names of their modules: the renaming to older ones that
                   transformers does for the family would take attached parts along
    since          the oldest transformers in which it can be done
    """

    projector: str
    width: Callable[[Any], int]
    project: Callable[[Any, Tensor], Tensor]
    raw: Mapping[str, RawFunction]
    maps: Callable[..., Tensor]
    pack: Callable[..., Tensor]
    split: Callable[..., Sequence[Tensor]] = keep_entries
    language_model: str = "language_model"
    tower: str = "vision_tower"
    features: str | None = None
    keeps_raw: bool = False
    feature_layer: Callable[[Any], int | Sequence[int]] | None = None
    deepstack: DeepStack | None = None
    per_layer_table: str | None = None
    id_embedders: tuple[str, ...] = ()
    processor: Literal["fixed", "runs", "tiles", "newline_tiles", "grid", "sizes", "padded", "positions"] = (
        "fixed"
    )
    own_rate: Callable[[Any], int] = keep_size
    dim: Callable[[Any], int] = read_tower_dim
    grid: Callable[[Any], PatchGrid] = read_native_grid
    patch_size: Callable[[Any], tuple[int, int]] = read_patch_size
    blocks: Callable[[Any], Sequence[nn.Module]] = find_tower_blocks
    whole_images: bool = False
    rope: bool = False
    hands_options: bool = False
    mixes_beams: bool = False
    videos: VideoFrames | None = None
    keeps_names: bool = False
    since: str = "5.0"
