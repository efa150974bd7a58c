"""High resolution by tiles: the order of the crops, what each one shows, and which layout an image gets."""

import random

import pytest
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from compressors.errors import UsageError
from connectors.tiling import GREY, Tiling

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))


def quarters(side: int) -> Image.Image:
    """Four colours: top left, top right, bottom left, bottom right."""
    image = Image.new("RGB", (2 * side, 2 * side))
    for i, colour in enumerate(COLOURS):
        image.paste(colour, (side * (i % 2), side * (i // 2), side * (i % 2) + side, side * (i // 2) + side))
    return image


def test_thumbnail_then_tiles_row_by_row():
    image = quarters(40)
    thumbnail, *tiles = Tiling(2, 40).crop(image)
    assert thumbnail.size == image.size and list(thumbnail.getdata()) == list(image.getdata())
    assert [tile.size for tile in tiles] == [(40, 40)] * 4
    assert [tile.getpixel((20, 20)) for tile in tiles] == list(COLOURS)


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_counts(tiles):
    tiling, wanted = Tiling(tiles, 8), 1 if tiles == 1 else 1 + tiles**2
    assert len(tiling.crop(quarters(8))) == tiling.num_crops(16, 16) == tiling.most_crops == wanted
    assert tiling.fixed


def test_one_tile_is_the_image_itself():
    image = quarters(8)
    assert Tiling(1, 4).crop(image)[0] is image


def test_tiles_cover_the_resized_square_without_overlap():
    image = quarters(30).resize((90, 90))
    _, *tiles = Tiling(3, 30).crop(image)
    whole = Image.new("RGB", (90, 90))
    for i, tile in enumerate(tiles):
        whole.paste(tile, (30 * (i % 3), 30 * (i // 3)))
    assert list(whole.getdata()) == list(image.getdata())


@pytest.mark.parametrize(("size", "band"), [((80, 40), "rows"), ((40, 80), "columns")])
def test_long_image_is_padded_with_grey_in_the_middle_of_a_square(size, band):
    thumbnail, *tiles = Tiling(2, 40).crop(Image.new("RGB", size, (255, 0, 0)))
    assert thumbnail.size == size  # the whole image, to be squashed: no padding
    first, last = tiles[0], tiles[-1]
    inner, outer = (39, 39), (0, 39) if band == "columns" else (39, 0)
    assert first.getpixel(inner) == (255, 0, 0) and first.getpixel(outer) == GREY
    assert last.getpixel((0, 0)) == (255, 0, 0) and last.getpixel((39, 39)) == GREY


def test_other_modes_become_rgb():
    for mode in ("L", "RGBA", "P"):
        assert {piece.mode for piece in Tiling(2, 5).crop(Image.new(mode, (10, 10)))} == {"RGB"}


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((40, 40), (1, 1)),
        ((10, 30), (1, 1)),
        ((80, 80), (2, 2)),
        ((500, 500), (2, 2)),
        ((41, 41), (2, 2)),
        ((80, 40), (1, 2)),
        ((40, 80), (2, 1)),
        ((120, 40), (1, 3)),
        ((40, 900), (4, 1)),
        ((9000, 1), (1, 1)),
    ],
)
def test_rows_and_columns_by_the_shape_of_the_image(size, grid):
    tiling, (rows, columns) = Tiling(2, 40, "anyres"), grid
    assert tiling.grid(*size) == grid and not tiling.fixed
    assert tiling.num_crops(*size) == (1 if grid == (1, 1) else 1 + rows * columns) <= tiling.most_crops == 5


def test_the_layout_is_the_one_that_llava_next_chooses():
    shapes = [(rows, columns) for rows in range(1, 10) for columns in range(1, 10) if rows * columns <= 9]
    shapes.sort(key=lambda shape: shape[0] * shape[1])
    tiling, draw = Tiling(3, 384, "anyres"), random.Random(0)
    for _ in range(500):
        width, height = draw.randint(20, 3000), draw.randint(20, 3000)
        best = select_best_resolution((height, width), [(384 * r, 384 * c) for r, c in shapes])
        assert tiling.grid(width, height) == (best[0] // 384, best[1] // 384), (width, height)


def test_as_many_crops_as_told_whatever_the_size():
    draw = random.Random(1)
    for tiles, layout in ((1, "square"), (2, "square"), (1, "anyres"), (2, "anyres"), (3, "anyres")):
        tiling = Tiling(tiles, 14, layout)
        for _ in range(60):
            width, height = draw.choice(((1, 300), (300, 1), (draw.randint(1, 90), draw.randint(1, 90))))
            thumbnail, *pieces = tiling.crop(Image.new("RGB", (width, height)))
            assert 1 + len(pieces) == tiling.num_crops(width, height) <= tiling.most_crops
            assert thumbnail.size == (width, height) and {piece.size for piece in pieces} <= {(14, 14)}


def test_tiles_of_a_wide_image_read_left_to_right():
    """Two quarters of four beside each other fill 1 x 2 tiles exactly."""
    image = quarters(40).crop((0, 0, 80, 40))
    assert [c.getpixel((20, 20)) for c in Tiling(2, 40, "anyres").crop(image)[1:]] == list(COLOURS[:2])


def test_what_does_not_fill_its_tiles_is_padded_in_the_middle_and_keeps_its_shape():
    _, left, right = Tiling(2, 40, "anyres").crop(Image.new("RGB", (80, 30), (255, 0, 0)))
    for tile in (left, right):
        column = [tile.getpixel((20, y)) for y in range(40)]
        assert column[0] == column[-1] == GREY and column[7:33] == [(255, 0, 0)] * 26


def test_no_such_layout():
    with pytest.raises(UsageError, match="layout=round: must be one of square, anyres"):
        Tiling(2, 40, "round")
    with pytest.raises(UsageError, match="tiles=0: must be at least 1"):
        Tiling(0, 40)


@pytest.mark.parametrize(
    "wrong", [{"tiles": [1]}, {"tiles": 0}, {"side": float("nan")}, {"layout": ["square"]}]
)
def test_odd_arguments_are_named(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        Tiling(**wrong)
