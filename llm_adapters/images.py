"""Images of any kind -> the crops that a tower reads, in training and inference alike."""

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image

from compressors.errors import UsageError, quote
from compressors.reading import check_regular_file
from connectors.tiling import Tiling
from connectors.towers.base import VisionTower
from connectors.towers.config import check_preprocessing
from connectors.versions import find_pil_class
from llm_adapters.orientation import IMAGE_ERRORS, convert_to_upright_rgb

URL_SCHEMES = ("http://", "https://")
URL_TIMEOUT_SECONDS = 60
LONGEST_NAME = 255  # characters of a file's name in most file systems


def image_processor(tower: VisionTower, size: int | None = None) -> BaseImageProcessor:
    """Preprocessing as the tower wants it: squashed to `size` pixels a side (None: the tower's own)."""
    size = size or tower.image_size
    # SigLIP's does what every tower wants: resize to a square, scale, normalise
    processor_class: Any = find_pil_class("SiglipImageProcessor")
    return processor_class(
        size={"height": size, "width": size},
        image_mean=list(tower.image_mean),
        image_std=list(tower.image_std),
        resample=Image.Resampling[tower.resample.upper()],
    )


def pil_backend(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """The same preprocessing through PIL. transformers loads the torchvision twin of what was saved, whose
    resizing differs by up to a grey level: training and inference would not see the same pixels."""
    twin = find_pil_class(type(image_processor).__name__)
    if twin is None:
        return image_processor
    return twin.from_dict(image_processor.to_dict())


def check_image_processor(image_processor: BaseImageProcessor) -> None:
    """UsageError for one that would fail at the first picture: values of another type, no square size."""
    values = image_processor.to_dict()
    check_preprocessing(values, "image_processor")
    size = values.get("size")
    if not isinstance(size, dict) or min(size.get("height", 0), size.get("width", 0)) < 1:
        raise UsageError(f"image_processor: size={quote(size)}: needs a height and a width of at least 1")


def load_picture(source: Any) -> Image.Image:
    """A picture upright and in RGB, as training reads it. `source`: a PIL image, a path, URL or base64 text,
    a file's bytes, a row {"bytes", "path"} of a Parquet file, or an array. UsageError for what is none."""
    try:
        return convert_to_upright_rgb(open_picture_source(source))
    except UsageError:
        raise  # it says what is wrong
    except IMAGE_ERRORS as error:
        raise UsageError(f"image {quote(source)}: no picture, or a damaged one ({quote(error)})") from error


def open_picture_source(source: Any) -> Image.Image:
    """The picture as it is stored."""
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, dict):  # as datasets of Hugging Face have pictures that they do not decode
        source = source.get("bytes") or source["path"]
    if isinstance(source, Path) or (isinstance(source, str) and is_file_name(source)):
        if Path(source).exists():
            check_regular_file(Path(source))
        return Image.open(source)
    if isinstance(source, str):
        if looks_like_name(source):
            raise UsageError(f"image {quote(source)}: no such file")
        source = read_picture_text(source)
    if isinstance(source, (bytes, bytearray)):
        return Image.open(BytesIO(source))
    if isinstance(source, np.ndarray) and source.dtype == np.uint16:  # which transformers would not scale
        return Image.fromarray(source.squeeze())
    return to_pil_image(source)


def is_file_name(text: str) -> bool:
    """Whether a file has this name; base64 text may be too long for any."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def looks_like_name(text: str) -> bool:
    """Whether a text that names no file is a misspelt name: base64 has no dots."""
    if text.startswith((*URL_SCHEMES, "data:")):
        return False
    return len(text) <= LONGEST_NAME and "." in text


def read_picture_text(text: str) -> bytes:
    """The file's bytes behind a URL, a data: URL or base64 text."""
    if text.startswith(URL_SCHEMES):
        with urlopen(text, timeout=URL_TIMEOUT_SECONDS) as response:
            return response.read()
    if text.startswith("data:"):
        text = text.partition(",")[2]
    return base64.b64decode(text)


def image_pixels(image_processor: BaseImageProcessor, images: Sequence[Any], tiling: Tiling) -> Tensor:
    """Images -> (crops of all of them, 3, h, w)."""
    crops = []
    for image in images:
        crops += tiling.crop(load_picture(image))
    return image_processor(crops, do_convert_rgb=True, return_tensors="pt")["pixel_values"]


def stack_images(rows: Sequence[Tensor]) -> Tensor:
    """(images of a row, ...) for each row -> (B, most images, ...), zeros after a row's own."""
    filled = next(row for row in rows if len(row))
    out = filled.new_zeros(len(rows), max(map(len, rows)), *filled.shape[1:])
    for place, row in zip(out, rows):
        if len(row):
            place[: len(row)] = row
    return out


def per_row(images: Any, rows: int) -> list[list[Any]]:
    """Images as transformers' processors take them -> a list of images for each of `rows` texts."""
    if images is None:
        return [[] for _ in range(rows)]
    if not isinstance(images, (list, tuple)):
        images = [images]
    if any(isinstance(image, (list, tuple)) for image in images):
        nested = [list(image) if isinstance(image, (list, tuple)) else [image] for image in images]
    elif rows == 1:
        nested = [list(images)]
    else:  # one image for each text
        nested = [[image] for image in images]
    if len(nested) != rows:
        raise UsageError(f"{len(nested)} lists of images for {rows} text(s); give one list for each text")
    return [[image for image in row if image is not None] for row in nested]
