"""What every patch of a scene shows, as integers: the targets the tower is pretrained on."""

import random
import string

import numpy as np

from experiments.picture_vqa.pictures import COLOURS, SEEN_STYLES, load_catalogue
from experiments.picture_vqa.scenes import (
    PATCH_SIZE,
    SCENE_SIZE,
    Box,
    Scene,
    Sign,
    place_objects,
    place_sign,
)
from experiments.picture_vqa.signs import CAPITAL_SHARE, SEEN_FONTS, SIGN_DIGITS

GRID_SIDE = SCENE_SIZE // PATCH_SIZE
OBJECT_CLASSES = ("", *load_catalogue())
CHARACTER_CLASSES = ("", *string.ascii_lowercase, *SIGN_DIGITS)
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
OBJECT, CHARACTER, COLOUR, ORDER, ROLE = range(len(TARGET_SIZES))
COVERED_SHARE = 0.35  # of a patch (of a character) that must be covered (inside) to count


def label_patches(scene: Scene) -> np.ndarray:
    """(GRID_SIDE, GRID_SIDE, targets) int16, targets in the order of `TARGET_SIZES`.

    Of several things on a patch the one that covers most of it counts.
    """
    labels = np.zeros((GRID_SIDE, GRID_SIDE, len(TARGET_SIZES)), np.int16)
    largest_share = np.zeros((GRID_SIDE, GRID_SIDE))
    for item in scene.objects:
        covered = _measure_overlap(item.box) / PATCH_SIZE**2
        mask = (covered >= COVERED_SHARE) & (covered > largest_share)
        labels[mask, OBJECT] = OBJECT_CLASSES.index(item.name)
        labels[mask, COLOUR] = COLOUR_CLASSES.index(item.colour)
        largest_share = np.maximum(largest_share, covered)
        row = int(item.y // PATCH_SIZE)
        column = int(item.x // PATCH_SIZE)
        labels[row, column, ROLE] = 1
    for sign in scene.signs:
        for index, (x, y) in enumerate(sign.centres()):
            _label_character(labels, largest_share, sign, index, x, y)
    return labels


def _label_character(
    labels: np.ndarray, largest_share: np.ndarray, sign: Sign, index: int, x: float, y: float
) -> None:
    """Write one character with its centre at (x, y) into `labels` and `largest_share`."""
    width = sign.advance
    height = CAPITAL_SHARE * sign.height
    half_width = width / 2
    half_height = height / 2
    box = (x - half_width, y - half_height, x + half_width, y + half_height)
    # a character is smaller than a patch: what counts is how much of it the patch holds
    inside = _measure_overlap(box) / (width * height)
    mask = (inside >= COVERED_SHARE) & (inside > largest_share)
    labels[mask, CHARACTER] = CHARACTER_CLASSES.index(sign.text[index])
    labels[mask, COLOUR] = COLOUR_CLASSES.index(sign.colour)
    labels[mask, ORDER] = index + 1
    np.maximum(largest_share, inside, out=largest_share)
    row = int(y // PATCH_SIZE)
    column = int(x // PATCH_SIZE)
    labels[row, column, ROLE] = 2


def _measure_overlap(box: Box) -> np.ndarray:
    """(GRID_SIDE, GRID_SIDE) area shared with every patch, in square pixels."""
    edges = np.arange(GRID_SIDE + 1) * PATCH_SIZE
    left, top, right, bottom = box
    starts = edges[:-1]
    ends = edges[1:]
    across = np.minimum(right, ends) - np.maximum(left, starts)  # negative where they do not meet
    down = np.minimum(bottom, ends) - np.maximum(top, starts)
    return np.clip(down, 0, None)[:, None] * np.clip(across, 0, None)[None, :]


def sample_crowded_scene(rng: random.Random) -> Scene:
    """More objects and signs than the benchmark shows, with any characters: more to learn from each image."""
    boxes: list[Box] = []
    texts = []
    for _ in range(rng.randint(3, 7)):
        alphabet = rng.choice((string.ascii_lowercase, SIGN_DIGITS))
        characters = rng.choices(alphabet, k=rng.randint(2, 4))
        texts.append("".join(characters))
    signs = []
    for text in texts:
        sign = place_sign(rng, text, SEEN_FONTS, boxes)
        if sign is not None:
            signs.append(sign)
    names = rng.sample(list(load_catalogue()), 11)
    objects = place_objects(rng, names, SEEN_STYLES, boxes)
    return Scene(tuple(objects), tuple(signs), rng.getrandbits(32))
