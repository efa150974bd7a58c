"""Descriptions as slots: one position for each thing, holding all its words at once.

A visual token tells what is there and where in one vector; prose spreads the same over several positions. A
language model pretrained on prose alone cannot read such a vector, so most described scenes are given as
slots: the embedding of a slot is the sum of the embeddings of its words. This is still text: "red heart x8
y2" said at once.
"""

import random
from dataclasses import dataclass, field

from experiments.backbones.tiny.dense_labels import GRID_SIDE, OBJECT_CLASSES, label_patches
from experiments.picture_vqa.captions import format_coordinates
from experiments.picture_vqa.scenes import Scene

SLOT_WIDTH = 4  # most words a slot can hold


@dataclass
class Slot:
    """Some words at one position; `scale` multiplies the sum of their embeddings."""

    words: list[str] = field(default_factory=list)
    scale: float = 1.0


def list_things(scene: Scene) -> list[tuple[float, float, str]]:
    """(x, y, words) of every object and of every character, in row-major order of patches."""
    found = [(item.x, item.y, item.name) for item in scene.objects]
    for sign in scene.signs:
        found += [(x, y, f"{sign.colour} {c}") for c, (x, y) in zip(sign.text, sign.centres(), strict=True)]
    return sorted(found, key=lambda thing: (thing[1] // 14, thing[0]))


def make_loose_slots(scene: Scene, rng: random.Random) -> list[Slot]:
    """One slot per thing, empty slots in between, so that nothing depends on how many positions there are."""
    slots = [Slot([*words.split(), *format_coordinates(x, y).split()]) for x, y, words in list_things(scene)]
    if rng.random() < 0.15:
        rng.shuffle(slots)
    for _ in range(rng.choice((0, rng.randint(0, 8), rng.randint(0, 40)))):
        slots.insert(rng.randint(0, len(slots)), Slot())
    return slots


def make_grid_slots(scene: Scene, rng: random.Random) -> list[Slot]:
    """One slot per patch: things stand where their centres are, fainter in the other patches they cover."""
    faint, placed = rng.uniform(0, 0.6), rng.random() < 0.5
    covers = label_patches(scene)[..., 0].flatten()
    slots = [Slot(OBJECT_CLASSES[label].split(), faint) for label in covers]
    if placed:
        for index, slot in enumerate(slots):
            slot.words = [*slot.words, f"x{index % GRID_SIDE}", f"y{index // GRID_SIDE}"]
    for x, y, words in list_things(scene):
        slots[int(y // 14) * GRID_SIDE + int(x // 14)] = Slot(
            [*words.split(), *format_coordinates(x, y).split()]
        )
    return slots
