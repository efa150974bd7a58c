"""High resolution by tiles: the order of FlashSloth-HD's crops and what each one shows."""
import pytest
from PIL import Image

from connectors.tiling import GREY, crop

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def quarters(side: int) -> Image.Image:
    """Four colours: top left, top right, bottom left, bottom right."""
    image = Image.new("RGB", (2 * side, 2 * side))
    for i, colour in enumerate(COLOURS):
        image.paste(colour, (side * (i % 2), side * (i // 2), side * (i % 2) + side, side * (i // 2) + side))
    return image


def test_thumbnail_then_tiles_row_by_row():
    image = quarters(40)
    thumbnail, *tiles = crop(image, 2, 40)
    assert thumbnail.size == image.size and list(thumbnail.getdata()) == list(image.getdata())
    assert [tile.size for tile in tiles] == [(40, 40)] * 4
    assert [tile.getpixel((20, 20)) for tile in tiles] == list(COLOURS)


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_counts(tiles):
    assert len(crop(quarters(8), tiles, 8)) == (1 if tiles == 1 else 1 + tiles**2)


def test_one_tile_is_the_image_itself():
    image = quarters(8)
    assert crop(image, 1, 4)[0] is image


def test_tiles_cover_the_resized_square_without_overlap():
    image = quarters(30).resize((90, 90))
    _, *tiles = crop(image, 3, 30)
    whole = Image.new("RGB", (90, 90))
    for i, tile in enumerate(tiles):
        whole.paste(tile, (30 * (i % 3), 30 * (i // 3)))
    assert list(whole.getdata()) == list(image.getdata())


@pytest.mark.parametrize(("size", "band"), [((80, 40), "rows"), ((40, 80), "columns")])
def test_long_image_is_padded_with_grey_in_the_middle_of_a_square(size, band):
    thumbnail, *tiles = crop(Image.new("RGB", size, (255, 0, 0)), 2, 40)
    assert thumbnail.size == size  # the whole image, to be squashed: no padding
    first, last = tiles[0], tiles[-1]
    inner, outer = (39, 39), (0, 39) if band == "columns" else (39, 0)
    assert first.getpixel(inner) == (255, 0, 0) and first.getpixel(outer) == GREY
    assert last.getpixel((0, 0)) == (255, 0, 0) and last.getpixel((39, 39)) == GREY


def test_other_modes_become_rgb():
    for mode in ("L", "RGBA", "P"):
        assert {piece.mode for piece in crop(Image.new(mode, (10, 10)), 2, 5)} == {"RGB"}
