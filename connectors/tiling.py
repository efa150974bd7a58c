"""High resolution by tiles, as FlashSloth-HD: the whole image as a thumbnail, then its tiles, row-major.

    [thumbnail, top left, top right, bottom left, bottom right]         k = 2: 5 crops
"""
from PIL import Image

GREY = (127, 127, 127)


def num_crops(tiles: int) -> int:
    """How many crops `crop` makes of an image."""
    return 1 + tiles**2 if tiles > 1 else 1


def crop(image: Image.Image, tiles: int, size: int) -> list[Image.Image]:
    """`tiles` = k > 1: the image itself, to be squashed, and its k x k tiles of `size` pixels a side: the
    image padded with grey to a square, resized to k * size, cut without overlap. k = 1: the image alone."""
    if tiles == 1:
        return [image]
    image = image.convert("RGB")
    side = max(image.size)
    square = Image.new("RGB", (side, side), GREY)
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    square = square.resize((tiles * size, tiles * size), Image.Resampling.BICUBIC)
    corners = [(x * size, y * size) for y in range(tiles) for x in range(tiles)]
    return [image, *(square.crop((x, y, x + size, y + size)) for x, y in corners)]
