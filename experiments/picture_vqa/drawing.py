"""Draws a scene: a varied background with clutter, the pictures, the signs. Same scene, same pixels.

The order in which a function calls `rng` decides the pixels: it must not change with the same
`GENERATOR_VERSION`.
"""

import colorsys
import random
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from experiments.picture_vqa.pictures import find_picture_file
from experiments.picture_vqa.scenes import SCENE_SIZE, Scene, SceneObject, Sign
from experiments.picture_vqa.signs import CAPITAL_SHARE, TEXT_COLOURS

RGB = tuple[int, int, int]
AnyFont = ImageFont.FreeTypeFont | ImageFont.ImageFont
PILLOW_FONT_RATIO = 0.86  # size over sign height at which the capitals of Pillow's own font have that share


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `SCENE_SIZE` x `SCENE_SIZE` pixels."""
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
    hue = rng.random()
    saturation = rng.uniform(0.08, 0.35)
    value = rng.uniform(0.7, 0.92)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _paint_background(rng: random.Random) -> Image.Image:
    """Plain, a gradient, a soft patchwork or stripes, of two pale colours."""
    kind = rng.choice(("plain", "gradient", "patchwork", "stripes"))
    first = _sample_pale_colour(rng)
    second = _sample_pale_colour(rng)
    plain = Image.new("RGB", (SCENE_SIZE, SCENE_SIZE), first)
    if kind == "plain":
        return plain
    if kind == "stripes":
        _add_stripes(plain, rng, first, second)
        return plain
    # random grey values, smoothly enlarged, mix the two colours; two a side make a gradient
    side = 2 if kind == "gradient" else rng.randint(3, 7)
    noise = Image.frombytes("L", (side, side), rng.randbytes(side * side))
    mask = noise.resize((SCENE_SIZE, SCENE_SIZE), Image.Resampling.BICUBIC)
    return Image.composite(plain, Image.new("RGB", mask.size, second), mask)


def _add_stripes(image: Image.Image, rng: random.Random, first: RGB, second: RGB) -> None:
    """Slanted stripes of a colour between the two, nearer to the first: strong ones would hide the signs."""
    red, green, blue = ((3 * a + b) // 4 for a, b in zip(first, second, strict=True))
    pen = ImageDraw.Draw(image)
    step = rng.randint(9, 31)
    slant = rng.randint(-60, 60)
    for x in range(-80, SCENE_SIZE + 80, step):
        pen.line((x, 0, x + slant, SCENE_SIZE), fill=(red, green, blue), width=step // 2)


def _add_clutter(image: Image.Image, rng: random.Random) -> None:
    """Thin strokes and specks, too small to pass for a picture or a character."""
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 14)):
        colour = tuple(rng.randrange(256) for _ in range(3))
        x = rng.randrange(SCENE_SIZE)
        y = rng.randrange(SCENE_SIZE)
        dx = rng.randint(-9, 9)
        dy = rng.randint(-9, 9)
        if rng.random() < 0.5:
            pen.line((x, y, x + dx, y + dy), fill=colour, width=1)
        else:
            below = (x + dx // 2, y + 3)
            beside = (x + 3, y + dy // 2)
            pen.polygon(((x, y), below, beside), fill=colour)


@lru_cache(maxsize=512)
def _load_sprite(file: Path) -> Image.Image:
    # Premultiplied alpha: transparent pixels may hold any colour, and resizing would bleed it into the edge.
    return Image.open(file).convert("RGBA").convert("RGBa")


def _paste_object(image: Image.Image, item: SceneObject) -> None:
    """The picture, tilted at its full 64 pixels and then shrunk into its box."""
    sprite = _load_sprite(find_picture_file(item.name, item.style))
    tilted = sprite.rotate(item.angle, Image.Resampling.BICUBIC)
    small = tilted.resize((item.size, item.size), Image.Resampling.BOX, reducing_gap=None).convert("RGBA")
    left, top, _, _ = item.box
    image.paste(small, (int(left), int(top)), small)


@lru_cache(maxsize=64)
def _load_font(name: str, height: int) -> AnyFont:
    """The font at the size at which its capitals are 0.62 of `height` (10 to 13 pixels)."""
    if name == "pillow":
        return ImageFont.load_default(size=height * PILLOW_FONT_RATIO)
    import matplotlib  # ships the other fonts; its import takes longer than many scenes

    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    _, top, _, bottom = ImageFont.truetype(file, 100).getbbox("H")
    return ImageFont.truetype(file, 100 * CAPITAL_SHARE * height / (bottom - top))


def _write_sign(image: Image.Image, sign: Sign, rng: random.Random) -> None:
    """The sign's characters, each centred on its place, on a light plaque if it has one."""
    pen = ImageDraw.Draw(image)
    if sign.plaque:
        light = tuple(rng.randint(236, 255) for _ in range(3))
        pen.rounded_rectangle(sign.box, radius=rng.choice((0, 3, 6)), fill=light)
    font = _load_font(sign.font, sign.height)
    for character, (x, y) in zip(sign.text.upper(), sign.centres(), strict=True):
        left, top, right, bottom = font.getbbox(character)
        corner = (x - (left + right) / 2, y - (top + bottom) / 2)
        pen.text(corner, character, fill=TEXT_COLOURS[sign.colour], font=font)
