"""Draws a scene: a varied background with clutter, the pictures, the signs. Same scene, same pixels."""

import colorsys
import random
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from experiments.picture_vqa.pictures import find_picture_file
from experiments.picture_vqa.scenes import SCENE_SIZE, Scene, SceneObject, Sign
from experiments.picture_vqa.signs import TEXT_COLOURS

RGB = tuple[int, int, int]


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `SIZE` x `SIZE` pixels."""
    rng = random.Random(scene.art)
    image = _paint_background(rng)
    _add_clutter(image, rng)
    for item in scene.objects:
        _paste_object(image, item)
    for sign in scene.signs:
        _write_sign(image, sign, rng)
    return image


def _sample_pale_colour(rng: random.Random) -> RGB:
    """Neither white nor strong: every object and text colour stands out from it."""
    hue, saturation, value = rng.random(), rng.uniform(0.08, 0.35), rng.uniform(0.7, 0.92)
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def _paint_background(rng: random.Random) -> Image.Image:
    """Plain, a gradient, a soft patchwork or stripes, of two pale colours."""
    kind = rng.choice(("plain", "gradient", "patchwork", "stripes"))
    first, second = _sample_pale_colour(rng), _sample_pale_colour(rng)
    if kind == "plain":
        return Image.new("RGB", (SCENE_SIZE, SCENE_SIZE), first)
    if kind == "stripes":
        return _paint_stripes(rng, first, second)
    side = 2 if kind == "gradient" else rng.randint(3, 7)
    noise = Image.frombytes("L", (side, side), rng.randbytes(side * side))
    mask = noise.resize((SCENE_SIZE, SCENE_SIZE), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", mask.size, first), Image.new("RGB", mask.size, second), mask)


def _paint_stripes(rng: random.Random, first: RGB, second: RGB) -> Image.Image:
    second = tuple((3 * a + b) // 4 for a, b in zip(first, second, strict=True))  # faint
    image = Image.new("RGB", (SCENE_SIZE, SCENE_SIZE), first)
    pen, step, slant = ImageDraw.Draw(image), rng.randint(9, 31), rng.randint(-60, 60)
    for x in range(-80, SCENE_SIZE + 80, step):
        pen.line((x, 0, x + slant, SCENE_SIZE), fill=second, width=step // 2)
    return image


def _add_clutter(image: Image.Image, rng: random.Random) -> None:
    """Thin strokes and specks, too small to pass for a picture or a character."""
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 14)):
        colour = tuple(rng.randrange(256) for _ in range(3))
        x, y, dx, dy = (
            rng.randrange(SCENE_SIZE),
            rng.randrange(SCENE_SIZE),
            rng.randint(-9, 9),
            rng.randint(-9, 9),
        )
        if rng.random() < 0.5:
            pen.line((x, y, x + dx, y + dy), fill=colour, width=1)
        else:
            pen.polygon(((x, y), (x + dx // 2, y + 3), (x + 3, y + dy // 2)), fill=colour)


@lru_cache(maxsize=512)
def _load_sprite(file: Path) -> Image.Image:
    # Premultiplied alpha: transparent pixels may hold any colour, and resizing would bleed it into the edge.
    return Image.open(file).convert("RGBA").convert("RGBa")


def _paste_object(image: Image.Image, item: SceneObject) -> None:
    sprite = _load_sprite(find_picture_file(item.name, item.style)).rotate(
        item.angle, Image.Resampling.BICUBIC
    )
    sprite = sprite.resize((item.size, item.size), Image.Resampling.BOX, reducing_gap=None).convert("RGBA")
    left, top, _, _ = item.box
    image.paste(sprite, (int(left), int(top)), sprite)


@lru_cache(maxsize=64)
def _load_font(name: str, height: int) -> ImageFont.FreeTypeFont:
    """The font at the size at which its capitals are 0.62 of `height` (10 to 13 pixels)."""
    if name == "pillow":
        return ImageFont.load_default(size=height * 0.86)
    import matplotlib

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    capital = ImageFont.truetype(file, 100).getbbox("H")
    return ImageFont.truetype(file, 100 * 0.62 * height / (capital[3] - capital[1]))


def _write_sign(image: Image.Image, sign: Sign, rng: random.Random) -> None:
    pen = ImageDraw.Draw(image)
    if sign.plaque:
        light = tuple(rng.randint(236, 255) for _ in range(3))
        pen.rounded_rectangle(sign.box, radius=rng.choice((0, 3, 6)), fill=light)
    font = _load_font(sign.font, sign.height)
    for character, (x, y) in zip(sign.text.upper(), sign.centres(), strict=True):
        left, top, right, bottom = font.getbbox(character)
        place = (x - (left + right) / 2, y - (top + bottom) / 2)
        pen.text(place, character, fill=TEXT_COLOURS[sign.colour], font=font)
