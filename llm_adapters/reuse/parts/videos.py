"""Videos of a model with a compressor in it: frames go through the compressor as images do, or the video is
refused."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

from compressors.errors import UsageError
from llm_adapters.reuse.families import ModelFamily, VideoFrames
from llm_adapters.reuse.families.crops import pass_features
from llm_adapters.reuse.parts.markers import EncodedImages
from llm_adapters.reuse.parts.positions import KeptPatches
from llm_adapters.reuse.parts.raw import RawLevel
from llm_adapters.reuse.wrapping import (
    IMAGE_TOKEN_NAMES,
    Args,
    ImageEncoder,
    Kwargs,
    Wrapping,
    bind_arguments,
    count_beams,
    hold_encoding,
    locate_units,
    read_token_id,
)

if TYPE_CHECKING:
    from llm_adapters.reuse.parts.visual_parts import VisualParts

# what `get_video_features` calls what `get_image_features` has by the second name
IMAGE_NAMES = {"pixel_values_videos": "pixel_values", "video_grid_thw": "image_grid_thw"}


def refuse_videos(original: Callable[..., Any], *_: Any, **__: Any) -> Any:
    """UsageError in the place of a method, such as `get_video_features`."""
    owner: Any = getattr(original, "__self__", original)
    raise UsageError(
        f"{type(owner).__name__}: nothing says how the frames of its videos are compressed; "
        "give the frames as images, or detach the compressor"
    )


class VideoAdapter:
    """What `VisualParts` does for videos.

    encodes_videos  whether that which is encoded at the moment are videos
    grids           its patch grids (n, 3), where the model has them
    """

    family: ModelFamily
    _wrapping: Wrapping
    _outside: tuple[PreTrainedModel, PreTrainedModel]
    encodes_videos = False
    grids: Tensor | None = None

    def encode_visuals(
        self, original: Callable[..., Any], args: Args, kwargs: Kwargs, arguments: Kwargs
    ) -> Any:
        """What a model's method makes of `args` and `kwargs`, with visual tokens in it; `arguments` are these
        by the names that images have."""
        raise NotImplementedError

    @property
    def refuses_videos(self) -> bool:
        """Whether the model encodes videos, and nothing says how their frames are compressed."""
        return self.family.videos is None and hasattr(self._outside[0], "get_video_features")

    def wrap_videos(self) -> None:
        """Videos go through the compressor, too, or are refused."""
        base, _ = self._outside
        videos = self.family.videos
        if self.refuses_videos:
            self._wrapping.wrap_method(base, "get_video_features", refuse_videos)
        if videos is None:
            return
        if hasattr(base, "get_video_features"):
            self._wrapping.wrap_method(base, "get_video_features", self._video_features)
        else:  # the method for images is asked; `generate` repeats rows rightly with one for videos
            self._wrapping.add_method(base, "get_video_features", self._videos_as_images)
        if videos.pooling is not None:
            pooling = base.get_submodule(videos.pooling)
            self._wrapping.wrap_method(
                pooling, "forward", RawLevel(cast("VisualParts", self), pooling, pass_features)
            )

    @property
    def encoded_kind(self) -> ModelFamily | VideoFrames:
        """What says how that which is encoded becomes maps and placeholders."""
        if self.encodes_videos and self.family.videos is not None:
            return self.family.videos
        return self.family

    def merge_times(self, features: Tensor) -> Tensor:
        """The tower's patches, of pieces of videos the means over their times where the model takes these."""
        kind = self.encoded_kind
        if not isinstance(kind, VideoFrames) or kind.mean_of_time is None:
            return features
        assert self.grids is not None  # such models have them
        return kind.mean_of_time(features, self.grids)

    def _video_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The same of videos."""
        arguments = name_as_images(bind_arguments(original, args, kwargs))
        with hold_encoding(), self.note_videos():
            return self.encode_visuals(original, args, kwargs, arguments)

    def _videos_as_images(self, pixel_values_videos: Tensor, **kwargs: Any) -> Any:
        """`get_video_features` of a model that has none."""
        encoder = cast(ImageEncoder, self._outside[0])
        with hold_encoding(), self.note_videos():
            return encoder.get_image_features(pixel_values=pixel_values_videos, **kwargs)

    @contextmanager
    def note_videos(self) -> Iterator[None]:
        """While it is open, what is encoded are videos."""
        self.encodes_videos = True
        try:
            yield
        finally:
            self.encodes_videos = False


def name_as_images(arguments: Kwargs) -> Kwargs:
    """Arguments of `get_video_features` by the names that `get_image_features` has for them."""
    return {IMAGE_NAMES.get(name, name): value for name, value in arguments.items()}


def check_tellable(base: nn.Module, ids: Tensor, is_video: Tensor) -> None:
    """UsageError for a prompt (B, T) of images and videos whose placeholders are the same, as GLM-V's are:
    the model takes all of them for both."""
    image_id = read_token_id(base.config, IMAGE_TOKEN_NAMES)
    if (ids[is_video] == image_id).any():
        raise UsageError(
            f"{type(base).__name__} does not tell images from videos in one batch, with a compressor or "
            "without; give the frames as images, or each in a batch of its own"
        )


def order_units(masks: Sequence[Tensor], counts: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Units of several kinds in the order of a batch, as (kind, number). Of each kind: where its placeholders
    are (B, T), and how many each unit has."""
    places = []
    for kind, (mask, unit_counts) in enumerate(zip(masks, counts, strict=True)):
        own_mask = mask[:: count_beams(mask, sum(unit_counts))]
        for number, (row, column) in enumerate(locate_units(own_mask, unit_counts)):
            places.append((row, column, kind, number))
    return [(kind, number) for _, _, kind, number in sorted(places)]


def merge_images(masks: Sequence[Tensor], encoded: Sequence[EncodedImages]) -> EncodedImages:
    """What a query module reads of images and videos, in the order of the batch. The arguments have an entry
    a kind."""
    if len(encoded) == 1:
        return encoded[0]
    order = order_units(masks, [images.counts for images in encoded])
    patches = [encoded[kind].patches[number] for kind, number in order]
    counts = [encoded[kind].counts[number] for kind, number in order]
    return EncodedImages(patches, counts)


def merge_kept(masks: Sequence[Tensor], kept: Sequence[KeptPatches]) -> KeptPatches:
    """The patches that images and frames of videos have kept, in the same order."""
    if len(kept) == 1:
        return kept[0]
    counts = []
    for kept_of_kind in kept:
        counts.append([len(places) for places in kept_of_kind.places])
    order = order_units(masks, counts)
    places = [kept[kind].places[number] for kind, number in order]
    grids = [kept[kind].grids[number] for kind, number in order]
    return KeptPatches(places, grids)
