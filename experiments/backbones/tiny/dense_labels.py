"""What every patch of a scene shows, as integers: the targets the tower is pretrained on."""

import random
import string

import numpy as np

from experiments.picture_vqa.pictures import COLOURS, SEEN_STYLES, load_catalogue
from experiments.picture_vqa.scenes import PATCH_SIZE, SCENE_SIZE, Scene, place_object, place_sign
from experiments.picture_vqa.signs import SEEN_FONTS

GRID_SIDE = SCENE_SIZE // PATCH_SIZE
OBJECT_CLASSES = ("", *load_catalogue())
CHARACTER_CLASSES = ("", *string.ascii_lowercase, *"23456789")
COLOUR_CLASSES = ("", *COLOURS)
# Number of classes per target; 0 is always "nothing". `role`: the patch holds 1 an object's centre,
# 2 a character's.
TARGET_SIZES = {
    "object": len(OBJECT_CLASSES),
    "character": len(CHARACTER_CLASSES),
    "colour": len(COLOUR_CLASSES),
    "order": 5,  # 1 + index of the character in its sign
    "role": 3,
}
COVERED_SHARE = 0.35  # of a patch (of a character) that must be covered (inside) to count


def label_patches(scene: Scene) -> np.ndarray:
    """(GRID, GRID, targets) int16, targets in the order of `TARGETS`."""
    labels = np.zeros((GRID_SIDE, GRID_SIDE, len(TARGET_SIZES)), np.int16)
    best = np.zeros((GRID_SIDE, GRID_SIDE))
    for item in scene.objects:
        covered = _measure_overlap(item.box) / PATCH_SIZE**2
        mask = (covered >= COVERED_SHARE) & (covered > best)
        labels[mask, 0], labels[mask, 2] = OBJECT_CLASSES.index(item.name), COLOUR_CLASSES.index(item.colour)
        best = np.maximum(best, covered)
        labels[int(item.y // PATCH_SIZE), int(item.x // PATCH_SIZE), 4] = 1
    for sign in scene.signs:
        for index, (x, y) in enumerate(sign.centres()):
            _label_character(labels, best, sign, index, x, y)
    return labels


def _label_character(labels: np.ndarray, best: np.ndarray, sign, index: int, x: float, y: float) -> None:
    width, height = sign.advance, 0.62 * sign.height
    inside = _measure_overlap((x - width / 2, y - height / 2, x + width / 2, y + height / 2)) / (
        width * height
    )
    mask = (inside >= COVERED_SHARE) & (inside > best)
    labels[mask, 1] = CHARACTER_CLASSES.index(sign.text[index])
    labels[mask, 2] = COLOUR_CLASSES.index(sign.colour)
    labels[mask, 3] = index + 1
    np.maximum(best, inside, out=best)
    labels[int(y // PATCH_SIZE), int(x // PATCH_SIZE), 4] = 2


def _measure_overlap(box: tuple[float, float, float, float]) -> np.ndarray:
    """(GRID, GRID) area shared with every patch, in square pixels."""
    edges = np.arange(GRID_SIDE + 1) * PATCH_SIZE
    left, top, right, bottom = box
    across = np.clip(np.minimum(right, edges[1:]) - np.maximum(left, edges[:-1]), 0, None)
    down = np.clip(np.minimum(bottom, edges[1:]) - np.maximum(top, edges[:-1]), 0, None)
    return down[:, None] * across[None, :]


def sample_crowded_scene(rng: random.Random) -> Scene:
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
