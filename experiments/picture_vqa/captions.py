"""Dense descriptions of scenes: captions of stage 1, and what a language model reads as a picture."""

import random

from experiments.picture_vqa.scenes import PATCH_SIZE, Scene, SceneObject, Sign

CAPTION_INSTRUCTIONS = (
    "describe the picture .",
    "what is in the picture ?",
    "what do you see ?",
    "list everything .",
)


def format_coordinates(x: float, y: float) -> str:
    """The patch a point is in: "x0 y0" is the top left corner, "x11 y11" the bottom right one."""
    return f"x{int(x // PATCH_SIZE)} y{int(y // PATCH_SIZE)}"


def describe_item(item: SceneObject | Sign) -> str:
    """ "red heart", "dog", or a sign spelled: "blue word s t o p"."""
    return (
        item.name if isinstance(item, SceneObject) else f"{item.colour} {item.kind} {spell_number(item.text)}"
    )


def spell_number(text: str) -> str:
    return " ".join(text)


def sort_for_reading(scene: Scene) -> list[SceneObject | Sign]:
    """Row by row of patches, left to right."""
    return sorted((*scene.objects, *scene.signs), key=lambda item: (item.y // PATCH_SIZE, item.x))


def describe_scene(scene: Scene, rng: random.Random | None = None) -> str:
    """ "dog at x3 y7 . red heart at x8 y9 ." in reading order, or shuffled when given a generator."""
    items = sort_for_reading(scene)
    if rng is not None:
        rng.shuffle(items)
    return " ".join(f"{describe_item(item)} at {format_coordinates(item.x, item.y)} ." for item in items)
