"""Processors of images that have patch grids of their own sizes, in one sequence or padded: Pixtral,
Idefics 2, Gemma 4."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from transformers import BatchFeature
from transformers.models.pixtral.image_processing_pixtral import get_resize_output_image_size
from transformers.processing_utils import MultiModalData

from llm_adapters.reuse.counting.attached import AttachedProcessor

# by which `apply_chat_template` asks for the places of placeholders
SPANS_OPTION = "return_text_replacement_offsets"


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
