"""Questions whose answers follow from the scene: six families that mirror the benchmarks of the paper."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from experiments.picture_vqa.captions import spell_number
from experiments.picture_vqa.pictures import (
    COLOURS,
    PLURAL_NOUNS,
    PLURALS,
    POPULAR_PICTURES,
    SHAPES,
    Picture,
    load_catalogue,
)
from experiments.picture_vqa.relations import DIRECTIONS, find_clear_places, find_neighbour, find_side
from experiments.picture_vqa.scenes import Scene, SceneObject

QUESTION_FAMILIES = ("presence", "recognition", "attribute", "counting", "relation", "reading")
# "shape" is left out where it would be the answer half of the time.
ASKED_CATEGORIES = tuple(category for category in PLURALS if category not in ("shape", *SHAPES))
# Turns a conversation asks of each family; presence, recognition and relation have the most kinds.
TURNS_BY_FAMILY = {
    "presence": 2,
    "recognition": 2,
    "attribute": 1,
    "counting": 1,
    "relation": 2,
    "reading": 1,
}


@dataclass(frozen=True)
class Question:
    """A turn; `kind` says more than the family: "adversarial", "two hops", ..."""

    family: str
    kind: str
    question: str
    answer: str


def ask_questions(
    scene: Scene,
    rng: random.Random,
    presence: tuple[bool, ...] | None = None,
    turns_of: Mapping[str, int] = MappingProxyType(TURNS_BY_FAMILY),
) -> list[Question]:
    """One conversation about the scene, in random order; `presence` fixes its presence turns' yes or no."""
    flags = presence or tuple(rng.random() < 0.5 for _ in range(turns_of["presence"]))
    names: set[str] = set()
    turns = [_ask_presence(scene, rng, flag, names) for flag in flags]
    for family, candidates in _PROPOSERS.items():
        turns += _pick_questions(candidates(scene, rng), rng, turns_of[family], family)
    rng.shuffle(turns)
    return turns


Candidates = dict[str, list[tuple[str, str]]]  # kind -> (question, answer)s


def _pick_questions(candidates: Candidates, rng: random.Random, turns: int, family: str) -> list[Question]:
    """Draws a kind, then an answer, then a question: frequent answers do not crowd out the rare ones."""
    picked = []
    for _ in range(turns):
        kinds = [kind for kind, pairs in candidates.items() if pairs]
        if not kinds:
            break
        kind = rng.choice(kinds)
        answer = rng.choice(sorted({answer for _, answer in candidates[kind]}))
        question = rng.choice([q for q, a in candidates[kind] if a == answer])
        candidates[kind].remove((question, answer))
        picked.append(Question(family, kind, question, answer))
    return picked


def _ask_presence(scene: Scene, rng: random.Random, present: bool, asked: set[str]) -> Question:
    """Is it there? Absent ones are drawn at random, from the popular ones, or from the look-alikes.

    Never the same name twice in a conversation: `asked` grows.
    """
    here = {item.name for item in scene.objects}
    kind = "present" if present else rng.choice(("random", "popular", "adversarial"))
    names = (
        sorted(here - asked) if present else [n for n in _list_absent(scene, kind) if n not in here | asked]
    )
    if not names:  # every look-alike is there
        kind, names = "random", [n for n in load_catalogue() if n not in here | asked]
    picture = load_catalogue()[rng.choice(names)]
    asked.add(picture.name)
    verb = "are there" if picture.noun in PLURAL_NOUNS else "is there"
    text = rng.choice((f"{verb} {picture.phrase} in the picture ?", f"can you see {picture.phrase} ?"))
    return Question("presence", kind, text, "yes" if picture.name in here else "no")


def _list_absent(scene: Scene, kind: str) -> list[str]:
    if kind == "adversarial":
        return [n for n, p in load_catalogue().items() if any(_look_alike(p, item) for item in scene.objects)]
    return sorted(POPULAR_PICTURES) if kind == "popular" else list(load_catalogue())


def _look_alike(picture: Picture, item: SceneObject) -> bool:
    """Same category; of two shapes, the same form or the same colour."""
    if picture.category == item.category == "shape":
        return picture.noun == item.noun or picture.colour == item.colour
    return picture.category == item.category


def _propose_recognition(scene: Scene, rng: random.Random) -> Candidates:
    places = find_clear_places(scene)
    alone = [(c, items[0]) for c in ASKED_CATEGORIES if len(items := _find_members(scene, c)) == 1]
    return {
        "name at a place": [(f"what object is at the {place} ?", item.name) for place, item in places],
        "name of a category": [(f"which {c} is in the picture ?", i.name) for c, i in alone],
        "category at a place": [
            (f"what kind of object is at the {p} ?", i.category)
            for p, i in places
            if i.category in ASKED_CATEGORIES
        ],
        "multiple choice": _pose_choices(scene, rng),
    }


def _pose_choices(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    here = {item.name for item in scene.objects}
    options = rng.sample([name for name in load_catalogue() if name not in here], 3)
    place = rng.randrange(4)
    options.insert(place, rng.choice(sorted(here)))
    listed = " , ".join(f"{letter} : {name}" for letter, name in zip("abcd", options, strict=True))
    return [(f"which object is in the picture ? {listed} .", "abcd"[place])]


def _find_members(scene: Scene, group: str) -> list[SceneObject]:
    """The objects of a category, of a shape ("heart") or of a colour."""
    return [item for item in scene.objects if group in (item.category, item.noun, item.colour)]


def _propose_attribute(scene: Scene, _: random.Random) -> Candidates:
    alone = {
        group: items[0] for group in (*SHAPES, *COLOURS) if len(items := _find_members(scene, group)) == 1
    }
    return {
        "colour of a shape": [(f"what colour is the {s} ?", alone[s].colour) for s in SHAPES if s in alone],
        "shape of a colour": [(f"what shape is {c} ?", alone[c].noun) for c in COLOURS if c in alone],
        "colour of a sign": [(f"what colour is the {sign.kind} ?", sign.colour) for sign in scene.signs],
        "colour at a place": [
            (f"what colour is the shape at the {place} ?", item.colour)
            for place, item in find_clear_places(scene)
            if item.colour
        ],
    }


def _propose_counting(scene: Scene, _: random.Random) -> Candidates:
    counts = [
        (f"how many {plural} are there ?", len(_find_members(scene, group)))
        for group, plural in PLURALS.items()
    ]
    counts += [(f"how many {c} shapes are there ?", len(_find_members(scene, c))) for c in COLOURS]
    return {
        "all objects": [("how many objects are there ?", str(len(scene.objects)))],
        "of a group": [(question, str(n)) for question, n in counts],
        "of several": [(question, str(n)) for question, n in counts if n > 1],
    }


def _propose_relation(scene: Scene, _: random.Random) -> Candidates:
    hops = [
        (a, d, b)
        for a in (*scene.objects, *scene.signs)
        for d in DIRECTIONS
        if (b := find_neighbour(a, scene.objects, d))
    ]
    two = [
        (a, d, e, c)
        for a, d, b in hops
        for e in DIRECTIONS
        if (c := find_neighbour(b, scene.objects, e)) and c is not a
    ]
    return {
        "one hop": [(f"what object is {d} the {_name_anchor(a)} ?", b.name) for a, d, b in hops],
        "two hops": [
            (f"what object is {e} the object {d} the {_name_anchor(a)} ?", c.name) for a, d, e, c in two
        ],
        "colour by relation": [
            (f"what colour is the object {d} the {_name_anchor(a)} ?", b.colour)
            for a, d, b in hops
            if b.colour
        ],
        "which side": _pose_sides(scene),
    }


def _name_anchor(anchor: object) -> str:
    return anchor.name if isinstance(anchor, SceneObject) else anchor.kind


def _pose_sides(scene: Scene) -> list[tuple[str, str]]:
    pairs = [(a, b) for a in scene.objects for b in scene.objects if a is not b]
    axes = (("left of", "right of", "left or right of"), ("above", "below", "above or below"))
    return [
        (f"is the {a.name} {both} the {b.name} ?", answer.removesuffix(" of"))
        for a, b in pairs
        for first, second, both in axes
        if (answer := find_side(a, b, first, second))
    ]


def _propose_reading(scene: Scene, _: random.Random) -> Candidates:
    signs = {sign.kind: sign for sign in scene.signs}
    unit = {"word": "letter", "number": "digit"}
    lone = [sign for sign in scene.signs if sum(sign.colour == other.colour for other in scene.signs) == 1]
    return {
        "whole": [(f"what {kind} is written ?", spell_number(sign.text)) for kind, sign in signs.items()],
        "by colour": [(f"what does the {sign.colour} sign say ?", spell_number(sign.text)) for sign in lone],
        "first": [(f"what is the first {unit[k]} of the {k} ?", sign.text[0]) for k, sign in signs.items()],
        "last": [(f"what is the last {unit[k]} of the {k} ?", sign.text[-1]) for k, sign in signs.items()],
    }


_PROPOSERS: dict[str, Callable[[Scene, random.Random], Candidates]] = {
    "recognition": _propose_recognition,
    "attribute": _propose_attribute,
    "counting": _propose_counting,
    "relation": _propose_relation,
    "reading": _propose_reading,
}
