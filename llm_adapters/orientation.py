"""Pictures as they are meant to be seen: one function for training, evaluation, questions and harnesses,
whether they come as files, bytes or PIL images. No torch."""

import struct
import zlib

from PIL import Image, ImageOps

from compressors.errors import UsageError

ORIENTATION_TAG = 0x0112  # of EXIF
SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)  # its values that swap width and height
# What opening and reading a file that is no picture, or a damaged one, may raise.
# Pillow's readers of damaged files let through whatever their parsing raises.
IMAGE_ERRORS = (
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    NotImplementedError,
    struct.error,
    zlib.error,
)


def convert_to_upright_rgb(image: Image.Image) -> Image.Image:
    """A picture in RGB, turned as its EXIF says, 16 bits a channel scaled to 8, without its transparency.
    UsageError for a picture of 32-bit numbers, whose range nobody knows."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise UsageError(f"its pixels are 32-bit numbers (mode {image.mode}); save it with 8 bits a channel")
    if image.mode.startswith("I;16"):  # convert() would clip it at 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    return image.convert("RGB")


def read_upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the same, from the header."""
    width, height = image.size
    if image.getexif().get(ORIENTATION_TAG) in SIDEWAYS_ORIENTATIONS:
        return height, width
    return width, height
