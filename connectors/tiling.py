"""High resolution by tiles, as FlashSloth-HD: the whole image as a thumbnail, then its tiles, row-major.

    [thumbnail, top left, top right, bottom left, bottom right]         2 x 2: 5 crops

The layout `anyres` chooses rows x columns by the image's shape, as LLaVA-NeXT does (Liu et al. 2024).
"""

from dataclasses import dataclass

from PIL import Image

from compressors.errors import UsageError, quote
from compressors.registry import conform

GREY = (127, 127, 127)
LAYOUTS = ("square", "anyres")


@dataclass(frozen=True)
class Tiling:
    """How images are cut into crops.

    tiles    k; 1: an image is its only crop
    side     pixels along a tile's side
    layout   square: k x k tiles; anyres: of all rows x columns of at most k * k tiles those that keep most of
             the image's pixels, among such the fewest tiles. What fits into one tile is its only crop.
    """

    tiles: int = 1
    side: int = 384
    layout: str = "square"

    def __post_init__(self) -> None:
        conform(self.layout, str, "layout")
        for name in ("tiles", "side"):
            value = conform(getattr(self, name), int, name)
            if value < 1:
                raise UsageError(f"{name}={value}: must be at least 1")
        if self.layout not in LAYOUTS:
            raise UsageError(f"layout={quote(self.layout)}: must be one of {', '.join(LAYOUTS)}")

    @property
    def fixed(self) -> bool:
        """Whether all images have the same number of crops."""
        return self.tiles == 1 or self.layout == "square"

    @property
    def most_crops(self) -> int:
        """Crops of an image, at most."""
        return 1 + self.tiles**2 if self.tiles > 1 else 1

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """(rows, columns) of the tiles of an image of `width` x `height` pixels."""
        if self.fixed:
            return self.tiles, self.tiles
        most = self.tiles**2
        best_grid = (1, 1)
        best_merits = (0, 0)
        for rows in range(1, most + 1):
            for columns in range(1, most // rows + 1):
                # of grids that show as much of the image, the one of fewest tiles
                merits = (self._count_shown_pixels(width, height, rows, columns), -rows * columns)
                if merits > best_merits:
                    best_grid = (rows, columns)
                    best_merits = merits
        return best_grid

    def _count_shown_pixels(self, width: int, height: int, rows: int, columns: int) -> int:
        """Pixels of the image that tiles can show, its shape kept: LLaVA-NeXT's effective resolution."""
        wide, high = columns * self.side, rows * self.side
        if wide * height <= high * width:
            high = height * wide // width
        else:
            wide = width * high // height
        return min(wide * high, width * height)

    def num_crops(self, width: int, height: int) -> int:
        """How many crops `crop` makes of an image of `width` x `height` pixels."""
        rows, columns = self.grid(width, height)
        return 1 + rows * columns if rows * columns > 1 else 1

    def padding(self, width: int, height: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size of the canvas of the tiles' shape that an image is padded to, and where on it the image is."""
        rows, columns = self.grid(width, height)
        wide = max(width, round(height * columns / rows))
        high = max(height, round(width * rows / columns))
        return (wide, high), ((wide - width) // 2, (high - height) // 2)

    def crop(self, image: Image.Image) -> list[Image.Image]:
        """The image itself, to be squashed, and its tiles: the image padded with grey to their shape, resized
        to it, cut without overlap."""
        if self.tiles == 1:
            return [image]
        image = image.convert("RGB")
        side = self.side
        rows, columns = self.grid(*image.size)
        if rows * columns == 1:
            return [image]
        (width, height), corner = self.padding(*image.size)
        canvas = Image.new("RGB", (width, height), GREY)
        canvas.paste(image, corner)
        canvas = canvas.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        crops = [image]
        for y in range(0, rows * side, side):
            for x in range(0, columns * side, side):
                crops.append(canvas.crop((x, y, x + side, y + side)))
        return crops
