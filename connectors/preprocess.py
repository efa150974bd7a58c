"""Pictures -> pixel values: RGB, squashed to one size, scaled to [0, 1], normalised. PIL and torch only."""
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compressors.errors import UsageError
from compressors.registry import suggest

RESAMPLE = {filter_.name.lower(): filter_ for filter_ in Image.Resampling}


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB; transparent parts on white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def preprocess(
    image: Image.Image,
    size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    resample: str = "bicubic",
) -> Tensor:
    """One picture as (3, height, width) float32 on the CPU. `size` in pixels: a side or (height, width).

    The aspect ratio is not kept (as SigLIP was trained, and FlashSloth does); transparency shows white. Equal
    to transformers' SiglipImageProcessorPil within 1e-6. UsageError for an unknown `resample`.
    """
    if resample not in RESAMPLE:
        raise UsageError(f"unknown resample '{resample}'{suggest(resample, RESAMPLE)}")
    height, width = (size, size) if isinstance(size, int) else size
    image = to_rgb(image)
    if image.size != (width, height):
        image = image.resize((width, height), RESAMPLE[resample])
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255  # (3, h, w)
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
