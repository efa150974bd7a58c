"""What the tiny language model reads: conversations about described scenes, and look-up drills.

A described scene is a conversation in the format of the multimodal model, the description in the place of
the image:
`USER: {description}\\n{question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>` ...
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from experiments.backbones.tiny.slots import WIDTH, Slot, grid_slots, loose_slots
from experiments.backbones.tiny.tokenizer import vocabulary
from experiments.picture_vqa.captions import INSTRUCTIONS, describe_scene
from experiments.picture_vqa.questions import Question, ask_questions
from experiments.picture_vqa.scenes import Scene, sample_scene

PROSE_WEIGHT, CAPTION_WEIGHT = 0.1, 0.4  # of a token in the loss; an answer's token has one
# Most for the families that are learnt last.
TURNS = {"presence": 3, "recognition": 2, "attribute": 1, "counting": 3, "relation": 6, "reading": 1}
SIDES = dict.fromkeys(TURNS, 0) | {"relation": 24}  # a conversation about sides alone, the last skill to form
DRILLS = 0.05  # of the training is drills alone: they make the circuits that looking up is built from
DRILL_WORDS = slice(17, 300)  # ordinary words of the vocabulary


@lru_cache(maxsize=1)
def _ids() -> dict[str, int]:
    return {token: index for index, token in enumerate(vocabulary())}


@dataclass
class Example:
    """Positions of one to `WIDTH` tokens, and the weight of each position's token in the loss."""

    ids: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def say(self, text: str, weight: float = 0.0) -> None:
        """Appends text; its words are the generator's, so splitting at spaces is what the tokenizer does."""
        for word in text.split():
            self.ids.append([_ids()[word]])
            self.weights.append(weight)
            self.scales.append(1.0)

    def show(self, slots: list[Slot]) -> None:
        """Appends slots; nothing is predicted inside them."""
        for slot in slots:
            self.ids.append([_ids()[word] for word in slot.words[:WIDTH]])
            self.weights.append(0.0)
            self.scales.append(slot.scale)

    def describe(self, scene: Scene, style: str, rng: random.Random) -> None:
        """The scene as "prose" (in reading order), "shuffled" prose, "slots" or a "grid" of slots."""
        if style == "slots":
            self.show(loose_slots(scene, rng))
        elif style == "grid":
            self.show(grid_slots(scene, rng))
        else:
            self.say(describe_scene(scene, rng if style == "shuffled" else None), PROSE_WEIGHT)

    def answer(self, question: str, answer: str, weight: float = 1.0) -> None:
        self.say(f"{question} assistant :")
        self.say(f"{answer} </s>", weight)


def conversation(
    scene: Scene, turns: list[Question], style: str, rng: random.Random, caption: bool
) -> Example:
    """All turns about one described scene; a caption turn first when asked."""
    example = Example()
    example.say("user :")
    example.describe(scene, style, rng)
    if caption:
        example.answer(rng.choice(INSTRUCTIONS), describe_scene(scene), CAPTION_WEIGHT)
    for index, turn in enumerate(turns):
        if index or caption:
            example.say("user :")
        example.answer(turn.question, turn.answer)
    return example


def copy_drill(rng: random.Random) -> Example:
    """A few random words over and over; from the second time on they can be known."""
    words = rng.sample(vocabulary()[DRILL_WORDS], rng.randint(3, 10))
    example = Example()
    example.say(" ".join(words))
    example.say(" ".join(words * (24 // len(words) - 1)), 1.0)
    return example


def lookup_drill(rng: random.Random) -> Example:
    """ "k1 v1 . k2 v2 . ..." and then the keys in any order, each to be answered by its value."""
    words = rng.sample(vocabulary()[DRILL_WORDS], 2 * rng.randint(2, 5))
    pairs = list(zip(words[::2], words[1::2], strict=True))
    example = Example()
    example.say(" ".join(f"{key} {value} ." for key, value in pairs))
    for key, value in rng.sample(pairs, len(pairs)):
        example.say(key)
        example.say(value, 1.0)
        example.say(".")
    return example


def training_example(rng: random.Random, progress: float) -> Example:
    """An example for the moment `progress` (0 to 1): drills alone, then small scenes, then all sizes."""
    if progress < DRILLS or (progress < 0.3 and rng.random() < 0.05):
        return rng.choice((copy_drill, lookup_drill))(rng)
    most = 7 if rng.random() < (progress - 0.1) / 0.2 else rng.randint(2, 4)
    scene = sample_scene(rng, objects=(min(3, most - 1), most))
    style = rng.choices(("prose", "shuffled", "slots", "grid"), (0.25, 0.1, 0.5, 0.15))[0]
    turns = ask_questions(scene, rng, turns_of=TURNS)
    if rng.random() < 0.2:
        turns = [
            turn for turn in ask_questions(scene, rng, turns_of=SIDES) if turn.kind == "which side"
        ] or turns
    return conversation(scene, turns, style, rng, caption=style in ("slots", "grid") and rng.random() < 0.2)


def collate(examples: list[Example], rows: int = 0, length: int = 0) -> dict[str, np.ndarray]:
    """Right-padded arrays, of at least `rows` x `length`: ids (B, T, WIDTH), weights and scales (B, T).

    Causal attention needs no mask for padding on the right.
    """
    rows = max(rows, len(examples))
    length = max(length, *(len(example.ids) for example in examples))
    ids = np.zeros((rows, length, WIDTH), np.int64)
    weights, scales = (np.zeros((rows, length), np.float32) for _ in range(2))
    for row, example in enumerate(examples):
        for column, tokens in enumerate(example.ids):
            ids[row, column, : len(tokens)] = tokens
        weights[row, : len(example.weights)] = example.weights
        scales[row, : len(example.scales)] = example.scales
    return {"ids": ids, "weights": weights, "scales": scales}
