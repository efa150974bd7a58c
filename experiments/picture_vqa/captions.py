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


def spell_number(text: str) -> str:
    """A sign's text with spaces between its characters: the tokenizer has a token for each of them."""
    return " ".join(text)


def describe_scene(scene: Scene, rng: random.Random | None = None) -> str:
    """Every object and sign and its patch: "dog at x3 y7 . blue word s t o p at x8 y9 ."

    In reading order (row by row of patches, left to right), or shuffled when given a generator.
    """
    items: list[SceneObject | Sign] = [*scene.objects, *scene.signs]
    items.sort(key=lambda item: (item.y // PATCH_SIZE, item.x))
    if rng is not None:
        rng.shuffle(items)
    sentences = []
    for item in items:
        if isinstance(item, SceneObject):
            description = item.name
        else:
            description = f"{item.colour} {item.kind} {spell_number(item.text)}"
        sentences.append(f"{description} at {format_coordinates(item.x, item.y)} .")
    return " ".join(sentences)
