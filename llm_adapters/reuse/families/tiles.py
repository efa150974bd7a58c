"""Families with a thumbnail and tiles of each image, which are one picture: LLaVA-NeXT, LLaVA-OneVision."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import PreTrainedModel
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, unpad_image

from llm_adapters.reuse.families.crops import LAYERED_CROPS, TRIED, flatten_crops
from llm_adapters.reuse.families.family import PatchGrid, VideoFrames, read_native_grid

# LLaVA-OneVision shrinks a picture that has more tokens than its most by this factor, by side
MOST_RATIO = 1.1


def skip_packing(
    base: PreTrainedModel,  # noqa: ARG001
    image_features: Sequence[Tensor],
) -> tuple[list[Tensor], None]:
    """In the place of `pack_image_features`: crops stay as they are; None for their sizes."""
    return list(image_features), None


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
    picture = lay_out_tiles(base, tokens, arguments, index, grid)
    return torch.cat([tokens[0], end_rows(base, picture)])


def join_tiles_of_onevision(
    base: PreTrainedModel,
    tokens: Tensor,
    arguments: Mapping[str, Any],
    index: int,
    grid: PatchGrid | None,
) -> Tensor:
    """The same, where a picture of many tiles is shrunk; one crop alone has a newline at its end."""
    if len(tokens) == 1:
        newline = base.get_parameter("image_newline").to(tokens)
        return torch.cat([tokens[0], newline.unsqueeze(0)])
    if grid is None:
        return tokens.flatten(0, 1)
    picture = lay_out_tiles(base, tokens, arguments, index, grid)
    height, width = picture.shape[1:]
    ratio_name = arguments.get("vision_aspect_ratio") or base.config.vision_aspect_ratio
    most_tiles = int(ratio_name.removeprefix("anyres_max_"))
    ratio = math.sqrt(height * width / (most_tiles * grid[0] ** 2))
    if ratio > MOST_RATIO:
        size = [int(height // ratio), int(width // ratio)]
        picture = interpolate(picture[None], size, mode="bilinear")[0]
    return torch.cat([tokens[0], end_rows(base, picture)])


def lay_out_tiles(
    base: PreTrainedModel, tokens: Tensor, arguments: Mapping[str, Any], index: int, grid: PatchGrid
) -> Tensor:
    """(1 + tiles, N, D) -> the tiles as one picture (D, H, W) without the padding of the image."""
    size = arguments["image_sizes"][index]
    tile_rows, _ = get_anyres_image_grid_shape(
        size,
        base.config.image_grid_pinpoints,
        base.config.vision_config.image_size,
    )
    picture = rearrange(tokens[1:], "(y x) (h w) d -> d (y h) (x w)", y=tile_rows, h=grid[0])
    return unpad_image(picture, size)


def end_rows(base: PreTrainedModel, picture: Tensor) -> Tensor:
    """(D, H, W) -> (H * (W + 1), D) with the newline's embedding at the end of each row."""
    newline = base.get_parameter("image_newline")[:, None, None]
    newlines = newline.expand(-1, picture.shape[1], 1).to(picture)
    picture = torch.cat([picture, newlines], -1)
    return rearrange(picture, "d h w -> (h w) d")


def make_frame_maps(
    base: PreTrainedModel,
    entry: Tensor,
    arguments: Mapping[str, Any],
    index: int,  # noqa: ARG001
) -> Tensor:
    """The patches of a video's frames, of each perhaps with a CLS token before them, -> (frames, H, W, C)."""
    frames = arguments["pixel_values"].shape[1]
    height, width = read_native_grid(base)
    patches = entry.reshape(frames, -1, entry.shape[-1])[:, -height * width :]
    return rearrange(patches, "n (h w) c -> n h w c", h=height)


def join_frames(
    base: PreTrainedModel,
    tokens: Tensor,
    arguments: Mapping[str, Any],  # noqa: ARG001
    index: int,  # noqa: ARG001
    grid: PatchGrid | None,  # noqa: ARG001
) -> Tensor:
    """(frames, N, D) -> (frames * N + 1, D): LLaVA-OneVision ends a video with a newline."""
    newline = base.get_parameter("image_newline").to(tokens)
    return torch.cat([tokens.flatten(0, 1), newline.unsqueeze(0)])


# The model's own packing wants tiles of as many tokens as patches.
LLAVA_NEXT = replace(
    LAYERED_CROPS,
    raw={**LAYERED_CROPS.raw, "pack_image_features": skip_packing},
    pack=join_tiles,
    processor="tiles",
    whole_images=True,
)

# The same for images; the frames of a video are pooled before the projector.
LLAVA_NEXT_VIDEO = replace(
    LLAVA_NEXT,
    videos=VideoFrames(make_frame_maps, flatten_crops, pooling="vision_resampler"),
    since=TRIED,
)

# Pictures of many tiles are shrunk; of several images in a row each is one crop. Frames are
# pooled behind the projector, before the newline, which is as wide as the LLM.
LLAVA_ONEVISION = replace(
    LLAVA_NEXT,
    pack=join_tiles_of_onevision,
    processor="newline_tiles",
    videos=VideoFrames(make_frame_maps, join_frames, keeps_raw=True),
    since=TRIED,
)
