"""Processors' classes whose placeholders follow a compressor: how each kind counts them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
import torch
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution
from transformers.models.glm4v.image_processing_glm4v import smart_resize as smart_resize_frames
from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.processing_utils import MultiModalData

from compressors.base import Compressor
from llm_adapters.reuse.marking import add_markers, repeat_query_marker
from llm_adapters.reuse.saving import write_record
from llm_adapters.reuse.wrapping import bind_arguments

# by which `apply_chat_template` asks for the places of placeholders
SPANS_OPTION = "return_text_replacement_offsets"


@dataclass
class AttachedState:
    """A processor's class, tokenizer and counts before; the compressor, without its weights; what tells the
    model that it belongs to."""

    plain: type
    tokenizer: PreTrainedTokenizerBase
    counts: dict[str, Any]
    compressor: Compressor
    num_queries: int
    pair: str
    grid: tuple[int, int] | None
    patch_size: tuple[int, int] | None
    own_rate: int
    record: dict[str, Any]


if TYPE_CHECKING:
    ProcessorBase = ProcessorMixin
else:
    # the classes below stand before a family's processor, which is the ProcessorMixin (`make_class`)
    ProcessorBase = object


class AttachedProcessor(ProcessorBase):
    """Stands before a processor's own class. `attached` is set on the instance."""

    attached: AttachedState
    tokenizer: PreTrainedTokenizerBase
    kind: ClassVar[str] = "fixed"
    sets_counts: ClassVar[bool] = True  # as attributes; others ask the compressor

    def __reduce__(self) -> tuple[Any, ...]:
        # the class was made at run time: a pickle cannot name it
        return rebuild_processor, (self.attached.plain, self.kind, dict(vars(self)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain: Any = super().__call__
        arguments = bind_arguments(plain, args, kwargs)  # some take the text first
        if self.attached.num_queries and arguments.get("text"):
            arguments["text"] = self._repeat_markers(arguments["text"])
        return self._run_plain(plain, arguments)

    def _run_plain(self, plain: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """What the processor's own class makes of the arguments."""
        return plain(**arguments)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        write_record(save_directory, self.attached.record)  # an adapter's folder has no model's configuration
        return saved

    def _repeat_markers(self, text: str | list[str]) -> str | list[str]:
        """A text or several, with a `<query>` for each query token."""
        if isinstance(text, str):
            return repeat_query_marker(text, 0, self.attached.num_queries)
        repeated = []
        for number, one_text in enumerate(text):
            repeated.append(repeat_query_marker(one_text, number, self.attached.num_queries))
        return repeated

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        num_queries = self.attached.num_queries
        if num_queries:
            # answers are found by their places in the text, which is not to grow behind the template then
            is_masked = bool(kwargs.get("return_assistant_tokens_mask"))
            conversation = add_markers(conversation, num_queries if is_masked else 1)
        return super().apply_chat_template(conversation, *args, **kwargs)


class TiledProcessor(AttachedProcessor):
    """LLaVA-NeXT's: a thumbnail, and tiles that are one picture with a newline after each row of tokens. A
    frame of a video has as many tokens as the thumbnail."""

    kind = "tiles"
    sets_counts = False
    video_newlines: ClassVar[int] = 0  # behind a video
    image_processor: Any
    video_token: str
    vision_feature_select_strategy: str
    _get_unpadded_features: Any

    def _get_number_of_features(self, orig_height: int, orig_width: int, height: int, width: int) -> int:
        assert self.attached.grid is not None  # of a crop: all have one
        compressor = self.attached.compressor
        grid = compressor.out_grid(*self.attached.grid)
        thumbnail = compressor.num_tokens(*self.attached.grid)
        pinpoints = self.image_processor.image_grid_pinpoints
        best_height, best_width = select_best_resolution((orig_height, orig_width), pinpoints)
        tile_rows = best_height // height
        tile_columns = best_width // width
        if grid is None:
            tiles = thumbnail * tile_rows * tile_columns
        else:
            # tokens of the unpadded picture, and its newlines
            tiles = sum(self._get_unpadded_features(orig_height, orig_width, *grid, tile_rows, tile_columns))
        # the caller takes the CLS token's away
        cls_token = self.vision_feature_select_strategy == "default"
        return thumbnail + tiles + cls_token

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **kwargs: Any) -> str:  # noqa: ARG002
        return self.video_token * self._count_video_tokens(
            len(video_inputs["pixel_values_videos"][video_idx])
        )

    def _count_video_tokens(self, frames: int) -> int:
        """Of a video of so many frames."""
        assert self.attached.grid is not None  # as of crops
        return frames * self.attached.compressor.num_tokens(*self.attached.grid) + self.video_newlines

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        plain: Any = super()
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if video_sizes is not None:
            data.num_video_tokens = [self._count_video_tokens(frames) for frames, _, _ in video_sizes]
        return data


class NewlineTiledProcessor(TiledProcessor):
    """LLaVA-OneVision's: the same, but of several images each is one crop, whose count is an attribute."""

    kind = "newline_tiles"
    sets_counts = True
    video_newlines = 1


class RunsProcessor(AttachedProcessor):
    """Aya Vision's and its like: in a text that the class makes, each run of as many placeholders as a crop
    has is one of as many as the compressor makes."""

    kind = "runs"
    sets_counts = False
    image_token_id: int
    video_token: str

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        plain: Any = super()
        text = plain.replace_image_token(image_inputs, image_idx, **kwargs)
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        before, after = self._count_crop_tokens()
        # no token of these texts is another's beginning, so that runs are found from the left
        return text.replace(token * before, token * after)

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **kwargs: Any) -> str:
        plain: Any = super()
        text = plain.replace_video_token(video_inputs, video_idx, **kwargs)
        before, after = self._count_crop_tokens()  # frames are crops
        return text.replace(self.video_token * before, self.video_token * after)

    def _count_crop_tokens(self) -> tuple[int, int]:
        """Of a crop, without the compressor and with it."""
        assert self.attached.grid is not None  # all crops have one
        height, width = self.attached.grid
        before = (height // self.attached.own_rate) * (width // self.attached.own_rate)
        return before, self.attached.compressor.num_tokens(height, width)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        plain: Any = super()
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None:
            before, after = self._count_crop_tokens()
            counts = []
            for count, crops in zip(data.num_image_tokens, data.num_image_patches):
                counts.append(count + crops * (after - before))
            data.num_image_tokens = counts
        return data


class SizedProcessor(AttachedProcessor):
    """Pixtral's and LightOn OCR's: an image has the patch grid of its size, perhaps with a token after each
    row of tokens and another at the end of the image."""

    kind = "sizes"
    sets_counts = False
    image_token: str
    image_break_token: str
    image_end_token: str
    image_processor: Any
    patch_size: int
    spatial_merge_size: int

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        height, width = image_inputs["image_sizes"][image_idx]
        plain: Any = super()
        own_text = plain.replace_image_token(image_inputs, image_idx, **kwargs)
        has_end = own_text.endswith(self.image_end_token)
        return self._write_image(int(height), int(width), has_end)

    def _write_image(self, height: int, width: int, has_end: bool) -> str:
        """The placeholders of an image of so many pixels; `has_end`: with the tokens of rows and end."""
        compressor = self.attached.compressor
        patches = height // self.patch_size, width // self.patch_size
        if not has_end:
            return self.image_token * compressor.num_tokens(*patches)
        grid = compressor.out_grid(*patches)
        if grid is None:  # as one row
            return self.image_token * compressor.num_tokens(*patches) + self.image_end_token
        row = self.image_token * grid[1]
        return self.image_break_token.join([row] * grid[0]) + self.image_end_token

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        plain: Any = super()
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is None:
            return data
        size = kwargs.get("size") or self.image_processor.size
        longest = size["longest_edge"], size["longest_edge"]
        side = self.patch_size * self.spatial_merge_size
        tokens = (self.image_token, self.image_break_token, self.image_end_token)
        data.num_image_tokens = []
        for height, width in image_sizes:
            resized = get_resize_output_image_size(np.zeros((height, width, 3)), longest, side)
            text = self.replace_image_token({"image_sizes": [resized]}, 0)
            data.num_image_tokens.append(sum(text.count(token) for token in tokens))
        return data


class PaddedProcessor(AttachedProcessor):
    """Idefics 2's: an image has the patch grid of its size, but the class writes texts, with as many
    placeholders for each image, before it sees them. They are written anew."""

    kind = "padded"
    sets_counts = False
    image_token: str
    fake_image_token: str

    @property
    def image_seq_len(self) -> int:
        """Of the texts that the class writes: as few as can be, so that none of them is cut off."""
        return 1

    def _run_plain(self, plain: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        output = plain(**arguments)
        texts = arguments.get("text")
        if texts is None or arguments.get("images") is None:
            return output
        if isinstance(texts, str):
            texts = [texts]
        written = []
        replaced = []
        for text, counts in zip(texts, self._count_tokens(output)):
            whole, spans = self._write_images(text, counts)
            written.append(whole)
            replaced.append(spans)
        options = {name: value for name, value in arguments.items() if name not in ("images", "text")}
        merged: Any = self._merge_kwargs(tokenizer_init_kwargs=self.tokenizer.init_kwargs, **options)
        text_options = merged["text_kwargs"]
        tensor_type = text_options.pop("return_tensors", None)
        asks_spans = text_options.pop(SPANS_OPTION, merged.get(SPANS_OPTION))
        encoded = self.tokenizer(written, **text_options)
        self._check_special_mm_tokens(written, encoded, modalities=["image"])
        output.update(BatchFeature(dict(encoded), tensor_type=tensor_type))
        if asks_spans:
            output["text_replacement_offsets"] = replaced
        return output

    def _count_tokens(self, output: Any) -> list[list[int]]:
        """Of each row the visual tokens of its images, or crops."""
        assert self.attached.patch_size is not None  # images have grids of their own
        patch_height, patch_width = self.attached.patch_size
        rows = []
        for sizes in read_padded_sizes(output):
            counts = []
            for height, width in sizes:
                count = self.attached.compressor.num_tokens(height // patch_height, width // patch_width)
                counts.append(count)
            rows.append(counts)
        return rows

    def _write_images(self, text: str, counts: Sequence[int]) -> tuple[str, list[dict[str, tuple[int, int]]]]:
        """A text with the placeholders of its images, whose crops have so many tokens, as the class does it:
        one boundary between neighbours, a space before a word that follows. With it where each image's were
        and where they are (`span`, `new_span`), by which transformers finds answers behind them."""
        boundary = self.fake_image_token
        written, *others = text.split(self.image_token)
        read = len(written)
        crops = len(counts) // max(len(others), 1)  # of an image
        spans = []
        for number, words in enumerate(others):
            start = len(written)
            for count in counts[number * crops : (number + 1) * crops]:
                written = written.removesuffix(boundary) + boundary + self.image_token * count + boundary
            if words and not words[0].isspace() and words[0] != "<":
                written += " "
            end = read + len(self.image_token)
            spans.append({"span": (read, end), "new_span": (start, len(written))})
            written += words
            read = end + len(words)
        return written, spans


def read_padded_sizes(output: Any) -> list[list[tuple[int, int]]]:
    """(height, width) in pixels of the images of each row, whose padding `pixel_attention_mask` tells."""
    rows = []
    mask = output.get("pixel_attention_mask")
    if mask is None:
        for images in output["pixel_values"]:
            rows.append([tuple(image.shape[-2:]) for image in images])
        return rows
    for masks in mask:
        sizes = [(int(image[:, 0].sum()), int(image[0].sum())) for image in masks]
        rows.append([size for size in sizes if all(size)])  # empty images fill rows
    return rows


class PositionedProcessor(AttachedProcessor):
    """Gemma 4's: an image has the patch grid that the positions of its patches span."""

    kind = "positions"
    sets_counts = False
    image_processor: Any
    image_token: str
    boi_token: str
    eoi_token: str

    def replace_image_token(
        self,
        image_inputs: dict[str, Any],
        image_idx: int,
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        positions = image_inputs["image_position_ids"][image_idx]  # (P, 2): column, row; -1 for padding
        width, height = (int(positions[:, axis].max()) + 1 for axis in (0, 1))
        count = self.attached.compressor.num_tokens(height, width)
        return self.boi_token + self.image_token * count + self.eoi_token

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        from transformers.models.gemma4.processing_gemma4 import (
            get_aspect_ratio_preserving_size,
        )  # not in older ones

        plain: Any = super()
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is None:
            return data
        images = self.image_processor
        pool = kwargs.get("pooling_kernel_size") or images.pooling_kernel_size
        patch = kwargs.get("patch_size") or images.patch_size
        most = (kwargs.get("max_soft_tokens") or images.max_soft_tokens) * pool**2
        data.num_image_tokens = []
        for height, width in image_sizes:
            size = get_aspect_ratio_preserving_size(height, width, patch, most, pool)
            count = self.attached.compressor.num_tokens(size[0] // patch, size[1] // patch)
            data.num_image_tokens.append(count)
        return data


class GridProcessor(AttachedProcessor):
    """Qwen-VL's: an image has the patch grid that its size gives, and so has a video, whose frames may stand
    between other tokens."""

    kind = "grid"
    sets_counts = False
    image_processor: Any
    video_processor: Any
    image_token: str
    video_token: str

    def replace_image_token(
        self,
        image_inputs: dict[str, Any],
        image_idx: int,
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        frames, height, width = image_inputs["image_grid_thw"][image_idx]
        tokens_per_frame = self.attached.compressor.num_tokens(int(height), int(width))
        return self.image_token * (int(frames) * tokens_per_frame)

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **kwargs: Any) -> str:
        plain: Any = super()
        text: str = plain.replace_video_token(video_inputs, video_idx, **kwargs)
        row = video_idx
        if "num_chunks_per_video" in video_inputs:  # Kimi's pieces of a video have a row each
            row = sum(video_inputs["num_chunks_per_video"][:video_idx])
        _, height, width = video_inputs["video_grid_thw"][row]
        before = int(height) * int(width) // self.video_processor.merge_size**2
        after = self.attached.compressor.num_tokens(int(height), int(width))
        # GLM-V's frames have the placeholders of images
        token = self.video_token if self.video_token in text else self.image_token
        return text.replace(token * before, token * after)

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        plain: Any = super()  # Qwen-VL's own class: ProcessorMixin itself has no such method
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if video_sizes is not None:
            data.num_video_tokens = [self._count_video_tokens(*size) for size in video_sizes]
        if image_sizes is None:
            return data
        patch = self.image_processor.patch_size
        data.num_image_tokens = []
        for size in image_sizes:
            height, width = self._resize(size)
            count = self.attached.compressor.num_tokens(height // patch, width // patch)
            data.num_image_tokens.append(count)
        return data

    def _count_video_tokens(self, frames: int, height: int, width: int) -> int:
        """Of a video of so many frames, (height, width) in pixels."""
        # each video processor resizes in its own way: it is given one
        video = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
        grids = self.video_processor([video], do_sample_frames=False, return_tensors="pt")["video_grid_thw"]
        compressor = self.attached.compressor
        if type(self.video_processor).__name__.startswith("Kimi"):  # the times of a piece become one
            grids[:, 0] = 1
        return sum(times * compressor.num_tokens(rows, columns) for times, rows, columns in grids.tolist())

    def _resize(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels -> the same as the image processor makes them."""
        images = self.image_processor
        if type(images).__name__.startswith("Kimi"):
            from transformers.models.kimi_k25.image_processing_kimi_k25 import (
                navit_resize,
            )  # not in older ones

            most = images.size["max_height"]
            _, padded = navit_resize(*size, images.patch_size, images.merge_size, images.max_patches, most)
            return padded
        factor = images.patch_size * images.merge_size
        least = images.size["shortest_edge"]
        most = images.size["longest_edge"]
        if type(self.image_processor).__name__.startswith("Glm"):  # counts frames, too
            frames = self.image_processor.temporal_patch_size
            return smart_resize_frames(frames, *size, frames, factor, least, most)
        return smart_resize(*size, factor, least, most)


KINDS = (
    AttachedProcessor,
    TiledProcessor,
    NewlineTiledProcessor,
    RunsProcessor,
    SizedProcessor,
    GridProcessor,
    PaddedProcessor,
    PositionedProcessor,
)
PROCESSORS_BY_KIND: dict[str, type[AttachedProcessor]] = {processor.kind: processor for processor in KINDS}


def make_class(plain: type, kind: str) -> type:
    """A subclass of a processor's class, of the same name, so that it is saved as before."""
    bases = (PROCESSORS_BY_KIND[kind], plain)
    return type(plain.__name__, bases, {"__module__": plain.__module__})


def rebuild_processor(plain: type, kind: str, state: dict[str, Any]) -> AttachedProcessor:
    """What unpickling and copying call."""
    processor: object = object.__new__(make_class(plain, kind))
    vars(processor).update(state)
    return cast(AttachedProcessor, processor)  # its class was made so
