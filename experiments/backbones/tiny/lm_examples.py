"""What the tiny language model reads: conversations about described scenes, and look-up drills.

A described scene is a conversation in the format of the multimodal model, the description in the place of
the image:
`USER: {description}\\n{question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>` ...
"""

import random
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from experiments.backbones.tiny.slots import SLOT_WIDTH, Slot, make_grid_slots, make_loose_slots
from experiments.backbones.tiny.tokenizer import build_vocabulary
from experiments.picture_vqa.captions import CAPTION_INSTRUCTIONS, describe_scene
from experiments.picture_vqa.questions import Question, ask_questions
from experiments.picture_vqa.scenes import Scene, sample_scene

PROSE_WEIGHT, CAPTION_WEIGHT = 0.1, 0.4  # of a token in the loss; an answer's token has one
# Most for the families that are learnt last.
PRETRAINING_TURNS = {
    "presence": 3,
    "recognition": 2,
    "attribute": 1,
    "counting": 3,
    "relation": 6,
    "reading": 1,
}
SIDE_TURNS = dict.fromkeys(PRETRAINING_TURNS, 0) | {
    "relation": 24
}  # a conversation about sides alone, the last skill to form
DRILL_SHARE = 0.05  # of the training is drills alone: they make the circuits that looking up is built from
DRILL_WORDS = slice(17, 300)  # ordinary words of the vocabulary


@lru_cache(maxsize=1)
def _index_tokens() -> dict[str, int]:
    return {token: index for index, token in enumerate(build_vocabulary())}


@dataclass
class TextExample:
    """Positions of one to `WIDTH` tokens, and the weight of each position's token in the loss."""

    ids: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def say(self, text: str, weight: float = 0.0) -> None:
        """Appends text; its words are the generator's, so splitting at spaces is what the tokenizer does."""
        for word in text.split():
            self.ids.append([_index_tokens()[word]])
            self.weights.append(weight)
            self.scales.append(1.0)

    def show(self, slots: list[Slot]) -> None:
        """Appends slots; nothing is predicted inside them."""
        for slot in slots:
            self.ids.append([_index_tokens()[word] for word in slot.words[:SLOT_WIDTH]])
            self.weights.append(0.0)
            self.scales.append(slot.scale)

    def describe(self, scene: Scene, style: str, rng: random.Random) -> None:
        """The scene as "prose" (in reading order), "shuffled" prose, "slots" or a "grid" of slots."""
        if style == "slots":
            self.show(make_loose_slots(scene, rng))
        elif style == "grid":
            self.show(make_grid_slots(scene, rng))
        else:
            self.say(describe_scene(scene, rng if style == "shuffled" else None), PROSE_WEIGHT)

    def answer(self, question: str, answer: str, weight: float = 1.0) -> None:
        self.say(f"{question} assistant :")
        self.say(f"{answer} </s>", weight)


def build_conversation(
    scene: Scene, turns: list[Question], style: str, rng: random.Random, caption: bool
) -> TextExample:
    """All turns about one described scene; a caption turn first when asked."""
    example = TextExample()
    example.say("user :")
    example.describe(scene, style, rng)
    if caption:
        example.answer(rng.choice(CAPTION_INSTRUCTIONS), describe_scene(scene), CAPTION_WEIGHT)
    for index, turn in enumerate(turns):
        if index or caption:
            example.say("user :")
        example.answer(turn.question, turn.answer)
    return example


def make_copy_drill(rng: random.Random) -> TextExample:
    """A few random words over and over; from the second time on they can be known."""
    words = rng.sample(build_vocabulary()[DRILL_WORDS], rng.randint(3, 10))
    example = TextExample()
    example.say(" ".join(words))
    example.say(" ".join(words * (24 // len(words) - 1)), 1.0)
    return example


def make_lookup_drill(rng: random.Random) -> TextExample:
    """ "k1 v1 . k2 v2 . ..." and then the keys in any order, each to be answered by its value."""
    words = rng.sample(build_vocabulary()[DRILL_WORDS], 2 * rng.randint(2, 5))
    pairs = list(zip(words[::2], words[1::2], strict=True))
    example = TextExample()
    example.say(" ".join(f"{key} {value} ." for key, value in pairs))
    for key, value in rng.sample(pairs, len(pairs)):
        example.say(key)
        example.say(value, 1.0)
        example.say(".")
    return example


def make_training_example(rng: random.Random, progress: float) -> TextExample:
    """An example for the moment `progress` (0 to 1): drills alone, then small scenes, then all sizes."""
    if progress < DRILL_SHARE or (progress < 0.3 and rng.random() < 0.05):
        return rng.choice((make_copy_drill, make_lookup_drill))(rng)
    most = 7 if rng.random() < (progress - 0.1) / 0.2 else rng.randint(2, 4)
    scene = sample_scene(rng, objects=(min(3, most - 1), most))
    style = rng.choices(("prose", "shuffled", "slots", "grid"), (0.25, 0.1, 0.5, 0.15))[0]
    turns = ask_questions(scene, rng, turns_of=PRETRAINING_TURNS)
    if rng.random() < 0.2:
        turns = [
            turn for turn in ask_questions(scene, rng, turns_of=SIDE_TURNS) if turn.kind == "which side"
        ] or turns
    return build_conversation(
        scene, turns, style, rng, caption=style in ("slots", "grid") and rng.random() < 0.2
    )


def collate_examples(examples: list[TextExample], rows: int = 0, length: int = 0) -> dict[str, np.ndarray]:
    """Right-padded arrays, of at least `rows` x `length`: ids (B, T, WIDTH), weights and scales (B, T).

    Causal attention needs no mask for padding on the right.
    """
    rows = max(rows, len(examples))
    length = max(length, *(len(example.ids) for example in examples))
    ids = np.zeros((rows, length, SLOT_WIDTH), np.int64)
    weights, scales = (np.zeros((rows, length), np.float32) for _ in range(2))
    for row, example in enumerate(examples):
        for column, tokens in enumerate(example.ids):
            ids[row, column, : len(tokens)] = tokens
        weights[row, : len(example.weights)] = example.weights
        scales[row, : len(example.scales)] = example.scales
    return {"ids": ids, "weights": weights, "scales": scales}
