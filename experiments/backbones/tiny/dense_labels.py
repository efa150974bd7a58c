"""What every patch of a scene shows, as integers: the targets the tower is pretrained on."""

import random
import string

import numpy as np

from experiments.picture_vqa.pictures import COLOURS, SEEN_STYLES, load_catalogue
from experiments.picture_vqa.scenes import PATCH, SIZE, Scene, place_object, place_sign
from experiments.picture_vqa.signs import SEEN_FONTS

GRID = SIZE // PATCH
NAMES = ("", *load_catalogue())
CHARACTERS = ("", *string.ascii_lowercase, *"23456789")
COLOUR_NAMES = ("", *COLOURS)
# Number of classes per target; 0 is always "nothing". `role`: the patch holds 1 an object's centre,
# 2 a character's.
TARGETS = {
    "object": len(NAMES),
    "character": len(CHARACTERS),
    "colour": len(COLOUR_NAMES),
    "order": 5,  # 1 + index of the character in its sign
    "role": 3,
}
SHARE = 0.35  # of a patch (of a character) that must be covered (inside) to count


def dense_labels(scene: Scene) -> np.ndarray:
    """(GRID, GRID, targets) int16, targets in the order of `TARGETS`."""
    labels = np.zeros((GRID, GRID, len(TARGETS)), np.int16)
    best = np.zeros((GRID, GRID))
    for item in scene.objects:
        covered = _overlap(item.box) / PATCH**2
        mask = (covered >= SHARE) & (covered > best)
        labels[mask, 0], labels[mask, 2] = NAMES.index(item.name), COLOUR_NAMES.index(item.colour)
        best = np.maximum(best, covered)
        labels[int(item.y // PATCH), int(item.x // PATCH), 4] = 1
    for sign in scene.signs:
        for index, (x, y) in enumerate(sign.centres()):
            _label_character(labels, best, sign, index, x, y)
    return labels


def _label_character(labels: np.ndarray, best: np.ndarray, sign, index: int, x: float, y: float) -> None:
    width, height = sign.advance, 0.62 * sign.height
    inside = _overlap((x - width / 2, y - height / 2, x + width / 2, y + height / 2)) / (width * height)
    mask = (inside >= SHARE) & (inside > best)
    labels[mask, 1] = CHARACTERS.index(sign.text[index])
    labels[mask, 2] = COLOUR_NAMES.index(sign.colour)
    labels[mask, 3] = index + 1
    np.maximum(best, inside, out=best)
    labels[int(y // PATCH), int(x // PATCH), 4] = 2


def _overlap(box: tuple[float, float, float, float]) -> np.ndarray:
    """(GRID, GRID) area shared with every patch, in square pixels."""
    edges = np.arange(GRID + 1) * PATCH
    left, top, right, bottom = box
    across = np.clip(np.minimum(right, edges[1:]) - np.maximum(left, edges[:-1]), 0, None)
    down = np.clip(np.minimum(bottom, edges[1:]) - np.maximum(top, edges[:-1]), 0, None)
    return down[:, None] * across[None, :]


def crowded_scene(rng: random.Random) -> Scene:
    """More objects and signs than the benchmark shows, with any characters: more to learn from each image."""
    boxes: list[tuple[float, float, float, float]] = []
    alphabets = (string.ascii_lowercase, "23456789")
    texts = [
        "".join(rng.choices(rng.choice(alphabets), k=rng.randint(2, 4))) for _ in range(rng.randint(3, 7))
    ]
    signs = [sign for text in texts if (sign := place_sign(rng, text, SEEN_FONTS, boxes))]
    names = rng.sample(list(load_catalogue()), 11)
    objects = [item for name in names if (item := place_object(rng, name, SEEN_STYLES, boxes))]
    return Scene(tuple(objects), tuple(signs), rng.getrandbits(32))
