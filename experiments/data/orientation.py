"""Pictures from files as they are meant to be seen, for training, evaluation and questions alike."""

from PIL import Image, ImageOps

ORIENTATION_TAG = 0x0112  # of EXIF
SIDEWAYS_ORIENTATIONS = (5, 6, 7, 8)  # its values that swap width and height
# What opening and reading a file that is no picture, or a damaged one, may raise.
IMAGE_ERRORS = (Image.UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)


def convert_to_upright_rgb(image: Image.Image) -> Image.Image:
    """A picture in RGB, turned as its EXIF says, 16 bits a channel scaled to 8. ValueError for a picture of
    32-bit numbers, whose range nobody knows."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}); save it with 8 bits a channel")
    if image.mode.startswith("I;16"):  # convert() would clip it at 255
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    return image.convert("RGB")


def read_upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the same, from the header."""
    width, height = image.size
    if image.getexif().get(ORIENTATION_TAG) in SIDEWAYS_ORIENTATIONS:
        return height, width
    return width, height
