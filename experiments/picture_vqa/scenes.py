"""Scenes as data: which pictures and signs stand where. Drawings, captions and questions start here."""

import random
from dataclasses import asdict, dataclass
from functools import lru_cache

from experiments.picture_vqa.pictures import (
    COLOURS,
    PLURALS,
    POPULAR_PICTURES,
    SEEN_STYLES,
    Picture,
    load_catalogue,
)
from experiments.picture_vqa.signs import SEEN_FONTS, SIGN_WORDS, TEXT_COLOURS

SCENE_SIZE = 168  # pixels
PATCH_SIZE = 14  # the tower's patch, so a scene is 12 x 12 patches
BOX_GAP = 4  # least distance between two boxes
PLACING_TRIES = 80


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
        return load_catalogue()[self.name]

    @property
    def noun(self) -> str:
        return self.picture.noun

    @property
    def box(self) -> tuple[float, float, float, float]:
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
    def box(self) -> tuple[float, float, float, float]:
        half = self.advance * len(self.text) / 2 + 2
        return self.x - half, self.y - self.height / 2, self.x + half, self.y + self.height / 2

    def centres(self) -> list[tuple[float, float]]:
        """The centre of every character, left to right."""
        first = self.x - (len(self.text) - 1) * self.advance / 2
        return [(first + i * self.advance, self.y) for i in range(len(self.text))]


@dataclass(frozen=True)
class Scene:
    """What a picture shows; `art` seeds its background and clutter."""

    objects: tuple[SceneObject, ...]
    signs: tuple[Sign, ...]
    art: int

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict) -> "Scene":
        objects = tuple(SceneObject(**item) for item in data["objects"])
        return cls(objects, tuple(Sign(**item) for item in data["signs"]), data["art"])


def sample_scene(
    rng: random.Random,
    styles: tuple[str, ...] = SEEN_STYLES,
    fonts: tuple[str, ...] = SEEN_FONTS,
    objects: tuple[int, int] = (3, 7),
    signs: tuple[int, int] = (1, 2),
) -> Scene:
    """Draws a scene; a full one may end with fewer objects than asked, never with fewer than `objects[0]`."""
    names = _choose_names(rng, rng.randint(*objects))
    while True:
        boxes: list[tuple[float, float, float, float]] = []
        kinds = rng.sample(["word", "number"], 2)[: rng.randint(*signs)]
        placed_signs = [
            sign for kind in kinds if (sign := place_sign(rng, sample_sign_text(rng, kind), fonts, boxes))
        ]
        placed = [item for name in names if (item := place_object(rng, name, styles, boxes))]
        if len(placed) >= min(objects[0], len(names)) and len(placed_signs) >= signs[0]:
            return Scene(tuple(placed), tuple(placed_signs), rng.getrandbits(32))


def _choose_names(rng: random.Random, count: int) -> list[str]:
    """Different names; a theme (a category, a shape, a colour) often repeats: counts above one are common."""
    groups = _group_names()
    theme = rng.choice((*PLURALS, *COLOURS))
    themed = rng.choice((0, 1, 2, 3, 4))
    names: list[str] = []
    for group in [theme] * themed + ["shape"] * rng.choice((1, 1, 2)) + ["any"] * count:
        choices, weights = groups[group]
        name = rng.choices(choices, weights)[0]
        if name not in names:
            names.append(name)
    names = names[:count]
    rng.shuffle(names)
    return names


@lru_cache(maxsize=1)
def _group_names() -> dict[str, tuple[list[str], list[int]]]:
    """Names and weights per category, shape and colour, and "any" (nouns only: shapes stay a minority)."""
    groups: dict[str, tuple[list[str], list[int]]] = {}
    for picture in load_catalogue().values():
        for key in (picture.category, *((picture.noun, picture.colour) if picture.colour else ("any",))):
            names, weights = groups.setdefault(key, ([], []))
            names.append(picture.name)
            weights.append(3 if picture.name in POPULAR_PICTURES else 1)
    return groups


def place_object(rng: random.Random, name: str, styles: tuple[str, ...], boxes: list) -> SceneObject | None:
    """The named picture at a free place, or None; its box joins `boxes`."""
    size = rng.randint(25, 36)
    centre = _find_free_centre(rng, size, size, boxes)
    if centre is None:
        return None
    picture = load_catalogue()[name]
    style, angle = rng.choice(styles), rng.randint(-12, 12)
    return SceneObject(name, picture.category, picture.colour, *centre, size, style, angle)


def sample_sign_text(rng: random.Random, kind: str) -> str:
    """Digits 0 and 1 are left out: in some fonts they are the letters O and I."""
    return rng.choice(SIGN_WORDS) if kind == "word" else "".join(rng.choices("23456789", k=rng.randint(2, 3)))


def place_sign(rng: random.Random, text: str, fonts: tuple[str, ...], boxes: list) -> Sign | None:
    """The text at a free place, or None; its box joins `boxes`."""
    advance, height = rng.randint(14, 16), rng.randint(17, 20)
    centre = _find_free_centre(rng, advance * len(text) + 4, height, boxes)
    if centre is None:
        return None
    kind = "word" if text.isalpha() else "number"
    colour, font = rng.choice(tuple(TEXT_COLOURS)), rng.choice(fonts)
    return Sign(kind, text, colour, *centre, advance, height, font, rng.random() < 0.7)


def _find_free_centre(rng: random.Random, width: int, height: int, boxes: list) -> tuple[float, float] | None:
    """A uniformly drawn whole-pixel box that keeps `GAP` from all others; it joins `boxes`."""
    for _ in range(PLACING_TRIES):
        left, top = rng.randint(1, SCENE_SIZE - width - 1), rng.randint(1, SCENE_SIZE - height - 1)
        box = (left, top, left + width, top + height)
        if all(_are_apart(box, other) for other in boxes):
            boxes.append(box)
            return left + width / 2, top + height / 2
    return None


def _are_apart(a: tuple, b: tuple) -> bool:
    return (
        a[0] >= b[2] + BOX_GAP or b[0] >= a[2] + BOX_GAP or a[1] >= b[3] + BOX_GAP or b[1] >= a[3] + BOX_GAP
    )
