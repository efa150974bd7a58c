"""Scenes as data: which pictures and signs stand where. Drawings, captions and questions start here."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from experiments.picture_vqa.pictures import (
    COLOURS,
    PLURALS,
    POPULAR_PICTURES,
    SEEN_STYLES,
    Picture,
    load_catalogue,
)
from experiments.picture_vqa.signs import SEEN_FONTS, SIGN_DIGITS, SIGN_WORDS, TEXT_COLOURS

SCENE_SIZE = 168  # pixels
PATCH_SIZE = 14  # the tower's patch, so a scene is 12 x 12 patches
BOX_GAP = 4  # least distance between two boxes
PLACING_TRIES = 80

Box = tuple[float, float, float, float]  # left, top, right, bottom in pixels


@dataclass(frozen=True)
class SceneObject:
    """A picture in the scene: centre, side of its square box, drawing style and tilt in degrees."""

    name: str
    category: str
    colour: str
    x: float
    y: float
    size: int
    style: str
    angle: int

    @property
    def picture(self) -> Picture:
        """The entry of the catalogue."""
        return load_catalogue()[self.name]

    @property
    def noun(self) -> str:
        """The last word of the name: "heart" of "red heart"."""
        return self.picture.noun

    @property
    def box(self) -> Box:
        """The square around the picture before it is tilted."""
        half = self.size / 2
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True)
class Sign:
    """A rendered word or number: one character every `advance` pixels, about a patch wide each."""

    kind: str  # "word" or "number"
    text: str
    colour: str
    x: float
    y: float
    advance: int
    height: int
    font: str
    plaque: bool

    @property
    def box(self) -> Box:
        """The plaque, two pixels wider on each side than the characters."""
        half_width = self.advance * len(self.text) / 2 + 2
        half_height = self.height / 2
        return self.x - half_width, self.y - half_height, self.x + half_width, self.y + half_height

    def centres(self) -> list[tuple[float, float]]:
        """(x, y) of every character, left to right."""
        first = self.x - (len(self.text) - 1) * self.advance / 2
        return [(first + index * self.advance, self.y) for index in range(len(self.text))]


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `art` seeds its background and clutter."""

    objects: tuple[SceneObject, ...]
    signs: tuple[Sign, ...]
    art: int

    def list_names(self) -> set[str]:
        """The names of the objects."""
        return {item.name for item in self.objects}

    def to_dict(self) -> dict[str, Any]:
        """The scene as JSON takes it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Scene":
        """The scene that `to_dict` gave this for."""
        objects = tuple(SceneObject(**fields) for fields in data["objects"])
        signs = tuple(Sign(**fields) for fields in data["signs"])
        return cls(objects, signs, data["art"])


# The order of the calls of `rng` below is part of the data set: another order draws other scenes.


def sample_scene(
    rng: random.Random,
    styles: tuple[str, ...] = SEEN_STYLES,
    fonts: tuple[str, ...] = SEEN_FONTS,
    objects: tuple[int, int] = (3, 7),
) -> Scene:
    """Draw a scene with one or two signs.

    `objects`: the least and the most of these. A full scene may end with fewer objects than were drawn, never
    with fewer than `objects[0]`.
    """
    names = _choose_names(rng, rng.randint(*objects))
    while True:
        boxes: list[Box] = []
        kinds = rng.sample(["word", "number"], 2)[: rng.randint(1, 2)]
        # signs first: they are wide, and find no place between the pictures
        placed_signs = []
        for kind in kinds:
            sign = place_sign(rng, sample_sign_text(rng, kind), fonts, boxes)
            if sign is not None:
                placed_signs.append(sign)
        placed_objects = place_objects(rng, names, styles, boxes)
        if len(placed_objects) >= min(objects[0], len(names)) and placed_signs:
            return Scene(tuple(placed_objects), tuple(placed_signs), rng.getrandbits(32))


def _choose_names(rng: random.Random, count: int) -> list[str]:
    """Different names; a theme (a category, a shape, a colour) often repeats: counts above one are common."""
    names_by_group = _group_names()
    theme = rng.choice((*PLURALS, *COLOURS))
    groups = [theme] * rng.choice((0, 1, 2, 3, 4))
    groups += ["shape"] * rng.choice((1, 1, 2))
    groups += ["any"] * count
    names: list[str] = []
    for group in groups:
        choices, weights = names_by_group[group]
        name = rng.choices(choices, weights)[0]
        if name not in names:
            names.append(name)
    names = names[:count]
    rng.shuffle(names)
    return names


@lru_cache(maxsize=1)
def _group_names() -> dict[str, tuple[list[str], list[int]]]:
    """Names and weights per category, shape and colour, and "any" (nouns only: shapes stay a minority)."""
    names_by_group: dict[str, tuple[list[str], list[int]]] = {}
    for picture in load_catalogue().values():
        groups = [picture.category]
        if picture.colour:
            groups += [picture.noun, picture.colour]
        else:
            groups.append("any")
        for group in groups:
            names, weights = names_by_group.setdefault(group, ([], []))
            names.append(picture.name)
            weights.append(3 if picture.name in POPULAR_PICTURES else 1)
    return names_by_group


def place_objects(
    rng: random.Random, names: Sequence[str], styles: tuple[str, ...], boxes: list[Box]
) -> list[SceneObject]:
    """The named pictures at free places, without those that find none; their boxes join `boxes`."""
    placed_objects = []
    for name in names:
        size = rng.randint(25, 36)  # pixels
        centre = _find_free_centre(rng, size, size, boxes)
        if centre is None:
            continue
        picture = load_catalogue()[name]
        style = rng.choice(styles)
        angle = rng.randint(-12, 12)  # degrees
        item = SceneObject(name, picture.category, picture.colour, *centre, size, style, angle)
        placed_objects.append(item)
    return placed_objects


def sample_sign_text(rng: random.Random, kind: str) -> str:
    """A word of the list, or a number of two or three digits."""
    if kind == "word":
        return rng.choice(SIGN_WORDS)
    return "".join(rng.choices(SIGN_DIGITS, k=rng.randint(2, 3)))


def place_sign(rng: random.Random, text: str, fonts: tuple[str, ...], boxes: list[Box]) -> Sign | None:
    """The text at a free place, or None; its box joins `boxes`."""
    advance = rng.randint(14, 16)
    height = rng.randint(17, 20)
    centre = _find_free_centre(rng, advance * len(text) + 4, height, boxes)
    if centre is None:
        return None
    kind = "word" if text.isalpha() else "number"
    colour = rng.choice(tuple(TEXT_COLOURS))
    font = rng.choice(fonts)
    plaque = rng.random() < 0.7
    return Sign(kind, text, colour, *centre, advance, height, font, plaque)


def _find_free_centre(
    rng: random.Random, width: int, height: int, boxes: list[Box]
) -> tuple[float, float] | None:
    """A uniformly drawn whole-pixel box that keeps `BOX_GAP` from all others; it joins `boxes`."""
    for _ in range(PLACING_TRIES):
        left = rng.randint(1, SCENE_SIZE - width - 1)
        top = rng.randint(1, SCENE_SIZE - height - 1)
        box = (left, top, left + width, top + height)
        if all(_are_apart(box, taken_box) for taken_box in boxes):
            boxes.append(box)
            return left + width / 2, top + height / 2
    return None


def _are_apart(first: Box, second: Box) -> bool:
    """Whether two boxes have `BOX_GAP` between them, across or down."""
    left_of = second[0] >= first[2] + BOX_GAP
    right_of = first[0] >= second[2] + BOX_GAP
    above = second[1] >= first[3] + BOX_GAP
    below = first[1] >= second[3] + BOX_GAP
    return left_of or right_of or above or below
