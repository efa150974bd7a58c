"""Images of any kind -> the crops that a tower reads, in training and inference alike."""

from collections.abc import Sequence
from typing import Any

from PIL.Image import Resampling
from torch import Tensor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image

from compressors.errors import UsageError
from connectors.tiling import Tiling
from connectors.towers.base import VisionTower
from connectors.versions import find_pil_class


def image_processor(tower: VisionTower, size: int | None = None) -> BaseImageProcessor:
    """Preprocessing as the tower wants it: squashed to `size` pixels a side (None: the tower's own)."""
    size = size or tower.image_size
    # SigLIP's does what every tower wants: resize to a square, scale, normalise
    processor_class: Any = find_pil_class("SiglipImageProcessor")
    return processor_class(
        size={"height": size, "width": size},
        image_mean=list(tower.image_mean),
        image_std=list(tower.image_std),
        resample=Resampling[tower.resample.upper()],
    )


def pil_backend(image_processor: BaseImageProcessor) -> BaseImageProcessor:
    """The same preprocessing through PIL. transformers loads the torchvision twin of what was saved, whose
    resizing differs by up to a grey level: training and inference would not see the same pixels."""
    twin = find_pil_class(type(image_processor).__name__)
    if twin is None:
        return image_processor
    return twin.from_dict(image_processor.to_dict())


def load_nested_images(image: Any, tiles: int = 1) -> Any:
    """An image of a path or URL, and for tiles a PIL image of an array; others as they are."""
    if isinstance(image, str):
        return load_image(image)
    if tiles == 1:
        return image
    return to_pil_image(image)


def image_pixels(image_processor: BaseImageProcessor, images: Sequence[Any], tiling: Tiling) -> Tensor:
    """Images -> (crops of all of them, 3, h, w)."""
    crops = []
    for image in images:
        crops += tiling.crop(load_nested_images(image, tiling.tiles))
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
