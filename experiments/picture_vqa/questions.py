"""Questions whose answers follow from the scene: six families that mirror the benchmarks of the paper.

Every family but presence proposes all questions that a scene has a sure answer to, sorted by kind; a few of
them are then drawn. The order of the proposals is part of the data set: it decides what the generator draws.
"""

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
from experiments.picture_vqa.scenes import Scene, SceneObject, Sign

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
SIDE_AXES = (("left of", "right of", "left or right of"), ("above", "below", "above or below"))
CHARACTER_NAMES = {"word": "letter", "number": "digit"}

QuestionAnswer = tuple[str, str]
Candidates = dict[str, list[QuestionAnswer]]  # by kind


@dataclass(frozen=True)
class Question:
    """A turn of a conversation; `kind` says more than the family: "adversarial", "two hops", ..."""

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
    """One conversation about the scene, in random order.

    `turns_of` is how many questions each family gets, fewer where the scene has no more. `presence` fixes the
    answers (yes: True) of the presence turns, and how many there are; by default they are drawn.
    """
    flags = presence or tuple(rng.random() < 0.5 for _ in range(turns_of["presence"]))
    used_names: set[str] = set()
    turns = []
    for flag in flags:
        turns.append(_ask_presence(scene, rng, flag, used_names))
    for family, propose in _PROPOSERS.items():
        candidates = propose(scene, rng)
        turns += _pick_questions(candidates, rng, turns_of[family], family)
    rng.shuffle(turns)
    return turns


def _pick_questions(candidates: Candidates, rng: random.Random, turns: int, family: str) -> list[Question]:
    """Draw a kind, then an answer, then a question: frequent answers do not crowd out the rare ones."""
    picked: list[Question] = []
    for _ in range(turns):
        kinds = [kind for kind, pairs in candidates.items() if pairs]
        if not kinds:
            break
        kind = rng.choice(kinds)
        pairs = candidates[kind]
        questions_by_answer: dict[str, list[str]] = {}
        for question, answer in pairs:
            questions_by_answer.setdefault(answer, []).append(question)
        drawn_answer = rng.choice(sorted(questions_by_answer))
        questions = questions_by_answer[drawn_answer]
        drawn_question = rng.choice(questions)
        pairs.remove((drawn_question, drawn_answer))  # no question twice in a conversation
        picked.append(Question(family, kind, drawn_question, drawn_answer))
    return picked


# ---- presence ----


def _ask_presence(scene: Scene, rng: random.Random, present: bool, used_names: set[str]) -> Question:
    """Ask whether a picture is there.

    Absent ones are drawn at random, from the popular ones, or from the look-alikes, as in POPE (Li et al.
    2023, arXiv 2305.10355). Never the same name twice in a conversation: `used_names` grows.
    """
    shown_names = scene.list_names()
    if present:
        kind = "present"
        names = sorted(shown_names - used_names)
    else:
        kind = rng.choice(("random", "popular", "adversarial"))
        names = _list_absent_names(scene, kind, used_names)
    if not names:
        # every look-alike is in the picture
        kind = "random"
        names = _list_absent_names(scene, kind, used_names)
    picture = load_catalogue()[rng.choice(names)]
    used_names.add(picture.name)
    verb = "are there" if picture.noun in PLURAL_NOUNS else "is there"
    question = rng.choice((f"{verb} {picture.phrase} in the picture ?", f"can you see {picture.phrase} ?"))
    answer = "yes" if picture.name in shown_names else "no"
    return Question("presence", kind, question, answer)


def _list_absent_names(scene: Scene, kind: str, used_names: set[str]) -> list[str]:
    """Names of one kind of negatives that the scene does not show and that were not asked for."""
    if kind == "popular":
        names = sorted(POPULAR_PICTURES)
    elif kind == "adversarial":
        names = []
        for picture in load_catalogue().values():
            if any(_look_alike(picture, item) for item in scene.objects):
                names.append(picture.name)
    else:
        names = list(load_catalogue())
    excluded = used_names | scene.list_names()
    return [name for name in names if name not in excluded]


def _look_alike(picture: Picture, item: SceneObject) -> bool:
    """Whether both have the same category; of two shapes, the same form or the same colour."""
    if picture.category == item.category == "shape":
        return picture.noun == item.noun or picture.colour == item.colour
    return picture.category == item.category


# ---- the other families ----


def _propose_recognition(scene: Scene, rng: random.Random) -> Candidates:
    """What stands at a place, which member of a category there is, and a choice of four names."""
    names_at_places = []
    categories_at_places = []
    for place, item in find_clear_places(scene):
        names_at_places.append((f"what object is at the {place} ?", item.name))
        if item.category in ASKED_CATEGORIES:
            categories_at_places.append((f"what kind of object is at the {place} ?", item.category))
    names_in_categories = []
    for category in ASKED_CATEGORIES:
        members = _find_members(scene, category)
        if len(members) == 1:
            names_in_categories.append((f"which {category} is in the picture ?", members[0].name))
    return {
        "name at a place": names_at_places,
        "name of a category": names_in_categories,
        "category at a place": categories_at_places,
        "multiple choice": [_pose_choice(scene, rng)],
    }


def _pose_choice(scene: Scene, rng: random.Random) -> QuestionAnswer:
    """Four names of which the scene shows one; the answer is a letter."""
    shown_names = scene.list_names()
    absent_names = [name for name in load_catalogue() if name not in shown_names]
    options = rng.sample(absent_names, 3)
    position = rng.randrange(4)
    options.insert(position, rng.choice(sorted(shown_names)))
    letters = "abcd"
    lettered_options = [f"{letter} : {name}" for letter, name in zip(letters, options, strict=True)]
    return f"which object is in the picture ? {' , '.join(lettered_options)} .", letters[position]


def _find_members(scene: Scene, group: str) -> list[SceneObject]:
    """The objects of a category, of a shape ("heart") or of a colour."""
    return [item for item in scene.objects if group in (item.category, item.noun, item.colour)]


def _propose_attribute(scene: Scene, _: random.Random) -> Candidates:
    """Colours and forms of shapes, and colours of signs; each only where one thing alone can be meant."""
    colours_of_shapes = []
    for shape in SHAPES:
        members = _find_members(scene, shape)
        if len(members) == 1:
            colours_of_shapes.append((f"what colour is the {shape} ?", members[0].colour))
    shapes_of_colours = []
    for colour in COLOURS:
        members = _find_members(scene, colour)
        if len(members) == 1:
            shapes_of_colours.append((f"what shape is {colour} ?", members[0].noun))
    colours_at_places = []
    for place, item in find_clear_places(scene):
        if item.colour:
            colours_at_places.append((f"what colour is the shape at the {place} ?", item.colour))
    return {
        "colour of a shape": colours_of_shapes,
        "shape of a colour": shapes_of_colours,
        "colour of a sign": [(f"what colour is the {sign.kind} ?", sign.colour) for sign in scene.signs],
        "colour at a place": colours_at_places,
    }


def _propose_counting(scene: Scene, _: random.Random) -> Candidates:
    """How many there are: of all objects, of a category or shape, of a colour; zero is an answer too."""
    questions = {}
    for group, plural in PLURALS.items():
        questions[group] = f"how many {plural} are there ?"
    for colour in COLOURS:
        questions[colour] = f"how many {colour} shapes are there ?"
    of_groups = []
    of_several = []
    for group, question in questions.items():
        count = len(_find_members(scene, group))
        of_groups.append((question, str(count)))
        if count > 1:  # a kind of its own, or nearly all answers would be 0 and 1
            of_several.append((question, str(count)))
    return {
        "all objects": [("how many objects are there ?", str(len(scene.objects)))],
        "of a group": of_groups,
        "of several": of_several,
    }


def _propose_relation(scene: Scene, _: random.Random) -> Candidates:
    """What is next to an object or a sign, what is next to that, and on which side of which object one is."""
    one_hop = []
    two_hops = []
    colours = []
    anchors: list[SceneObject | Sign] = [*scene.objects, *scene.signs]
    for anchor in anchors:
        anchor_name = _name_anchor(anchor)
        for direction in DIRECTIONS:
            neighbour = find_neighbour(anchor, scene.objects, direction)
            if neighbour is None:
                continue
            one_hop.append((f"what object is {direction} the {anchor_name} ?", neighbour.name))
            if neighbour.colour:
                question = f"what colour is the object {direction} the {anchor_name} ?"
                colours.append((question, neighbour.colour))
            for onward in DIRECTIONS:
                target = find_neighbour(neighbour, scene.objects, onward)
                # a way that leads back to its start would name the answer in the question
                if target is not None and target is not anchor:
                    question = f"what object is {onward} the object {direction} the {anchor_name} ?"
                    two_hops.append((question, target.name))
    return {
        "one hop": one_hop,
        "two hops": two_hops,
        "colour by relation": colours,
        "which side": _pose_sides(scene),
    }


def _name_anchor(anchor: SceneObject | Sign) -> str:
    """An object's name; a sign's kind, of which a scene has only one."""
    if isinstance(anchor, SceneObject):
        return anchor.name
    return anchor.kind


def _pose_sides(scene: Scene) -> list[QuestionAnswer]:
    """Left or right, above or below, of every ordered pair of objects that are clearly apart."""
    pairs = []
    for anchor in scene.objects:
        for reference in scene.objects:
            if anchor is reference:
                continue
            for first, second, alternatives in SIDE_AXES:
                side = find_side(anchor, reference, first, second)
                if side is not None:
                    question = f"is the {anchor.name} {alternatives} the {reference.name} ?"
                    pairs.append((question, side.removesuffix(" of")))
    return pairs


def _propose_reading(scene: Scene, _: random.Random) -> Candidates:
    """What a sign says, whole or its first or last character; by colour where no other sign has it."""
    colours = [sign.colour for sign in scene.signs]
    candidates: Candidates = {"whole": [], "by colour": [], "first": [], "last": []}
    for sign in scene.signs:
        spelled_text = spell_number(sign.text)
        unit = CHARACTER_NAMES[sign.kind]
        candidates["whole"].append((f"what {sign.kind} is written ?", spelled_text))
        if colours.count(sign.colour) == 1:
            candidates["by colour"].append((f"what does the {sign.colour} sign say ?", spelled_text))
        candidates["first"].append((f"what is the first {unit} of the {sign.kind} ?", sign.text[0]))
        candidates["last"].append((f"what is the last {unit} of the {sign.kind} ?", sign.text[-1]))
    return candidates


# In this order, in which the random stream passes through them.
_PROPOSERS: dict[str, Callable[[Scene, random.Random], Candidates]] = {
    "recognition": _propose_recognition,
    "attribute": _propose_attribute,
    "counting": _propose_counting,
    "relation": _propose_relation,
    "reading": _propose_reading,
}
