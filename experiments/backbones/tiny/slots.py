"""Descriptions as slots: one position for each thing, holding all its words at once.

A visual token tells what is there and where in one vector; prose spreads the same over several positions. A
language model pretrained on prose alone cannot read such a vector, so most described scenes are given as
slots: the embedding of a slot is the sum of the embeddings of its words. This is still text: "red heart x8
y2" said at once.
"""

import random
from dataclasses import dataclass, field

from experiments.backbones.tiny.dense_labels import GRID_SIDE, OBJECT, OBJECT_CLASSES, label_patches
from experiments.picture_vqa.captions import format_coordinates
from experiments.picture_vqa.scenes import PATCH_SIZE, Scene

SLOT_WIDTH = 4  # most words a slot can hold


@dataclass
class Slot:
    """Some words at one position; `scale` multiplies the sum of their embeddings."""

    words: list[str] = field(default_factory=list)
    scale: float = 1.0


@dataclass(frozen=True)
class Thing:
    """An object or a character of a sign, with its centre in pixels."""

    x: float
    y: float
    description: str

    def as_slot(self) -> Slot:
        """What it is and the patch it is in, as one slot."""
        return Slot([*self.description.split(), *format_coordinates(self.x, self.y).split()])


def list_things(scene: Scene) -> list[Thing]:
    """Every object and every character, in row-major order of patches."""
    things = [Thing(item.x, item.y, item.name) for item in scene.objects]
    for sign in scene.signs:
        for character, (x, y) in zip(sign.text, sign.centres(), strict=True):
            things.append(Thing(x, y, f"{sign.colour} {character}"))
    return sorted(things, key=lambda thing: (thing.y // PATCH_SIZE, thing.x))


def make_loose_slots(scene: Scene, rng: random.Random) -> list[Slot]:
    """One slot per thing, empty slots in between, so that nothing depends on how many positions there are."""
    slots = [thing.as_slot() for thing in list_things(scene)]
    if rng.random() < 0.15:
        rng.shuffle(slots)
    # none, a few or many: all three are drawn before one is chosen
    empty_slots = rng.choice((0, rng.randint(0, 8), rng.randint(0, 40)))
    for _ in range(empty_slots):
        slots.insert(rng.randint(0, len(slots)), Slot())
    return slots


def make_grid_slots(scene: Scene, rng: random.Random) -> list[Slot]:
    """One slot per patch: things stand where their centres are, fainter in the other patches they cover."""
    faintness = rng.uniform(0, 0.6)
    with_coordinates = rng.random() < 0.5
    object_classes = label_patches(scene)[..., OBJECT].flatten()  # (GRID_SIDE * GRID_SIDE,)
    slots = []
    for index, object_class in enumerate(object_classes):
        words = OBJECT_CLASSES[object_class].split()
        if with_coordinates:
            row, column = divmod(index, GRID_SIDE)
            words += [f"x{column}", f"y{row}"]
        slots.append(Slot(words, faintness))
    for thing in list_things(scene):
        row = int(thing.y // PATCH_SIZE)
        column = int(thing.x // PATCH_SIZE)
        slots[row * GRID_SIDE + column] = thing.as_slot()
    return slots
