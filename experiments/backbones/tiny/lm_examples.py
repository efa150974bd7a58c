"""What the tiny language model reads: conversations about described scenes, and look-up drills.

A described scene is a conversation in the format of the multimodal model, the description in the place of
the image:
`USER: {description}\\n{question} ASSISTANT: {answer}</s>USER: {question} ASSISTANT: {answer}</s>` ...
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from experiments.backbones.tiny.slots import SLOT_WIDTH, Slot, make_grid_slots, make_loose_slots
from experiments.backbones.tiny.tokenizer import build_vocabulary
from experiments.picture_vqa.captions import CAPTION_INSTRUCTIONS, describe_scene
from experiments.picture_vqa.questions import Question, ask_questions
from experiments.picture_vqa.scenes import Scene, sample_scene

# Of a token in the loss; an answer's token has one.
PROSE_WEIGHT = 0.1
CAPTION_WEIGHT = 0.4
# Most for the families that are learnt last.
PRETRAINING_TURNS = {
    "presence": 3,
    "recognition": 2,
    "attribute": 1,
    "counting": 3,
    "relation": 6,
    "reading": 1,
}
# A conversation about sides alone, the last skill to form.
SIDE_TURNS = dict.fromkeys(PRETRAINING_TURNS, 0) | {"relation": 24}
DRILL_SHARE = 0.05  # of the training is drills alone: they make the circuits that looking up is built from
DRILL_WORDS = slice(17, 300)  # ordinary words of the vocabulary
COPY_DRILL_WORDS = 24  # about the length of a copy drill
# How scenes are described, and how often.
STYLE_SHARES = {"prose": 0.25, "shuffled": 0.1, "slots": 0.5, "grid": 0.15}


@lru_cache(maxsize=1)
def _index_tokens() -> dict[str, int]:
    return {token: index for index, token in enumerate(build_vocabulary())}


@dataclass
class TextExample:
    """Positions of one to `SLOT_WIDTH` tokens, the weight of each position's token in the loss, and the scale
    of each position's embedding."""

    ids: list[list[int]] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    scales: list[float] = field(default_factory=list)

    def add_text(self, text: str, weight: float = 0.0) -> None:
        """Append text; its words are the generator's, so splitting at spaces is what the tokenizer does."""
        for word in text.split():
            self.ids.append([_index_tokens()[word]])
            self.weights.append(weight)
            self.scales.append(1.0)

    def add_slots(self, slots: list[Slot]) -> None:
        """Append slots; nothing is predicted inside them."""
        for slot in slots:
            words = slot.words[:SLOT_WIDTH]
            self.ids.append([_index_tokens()[word] for word in words])
            self.weights.append(0.0)
            self.scales.append(slot.scale)

    def add_description(self, scene: Scene, style: str, rng: random.Random) -> None:
        """Append the scene as "prose" (in reading order), "shuffled" prose, "slots" or a "grid" of slots."""
        if style == "slots":
            self.add_slots(make_loose_slots(scene, rng))
        elif style == "grid":
            self.add_slots(make_grid_slots(scene, rng))
        elif style == "shuffled":
            self.add_text(describe_scene(scene, rng), PROSE_WEIGHT)
        else:
            self.add_text(describe_scene(scene), PROSE_WEIGHT)

    def add_turn(self, question: str, answer: str, weight: float = 1.0) -> None:
        """Append a question and its answer, of which the answer's tokens count in the loss."""
        self.add_text(f"{question} assistant :")
        self.add_text(f"{answer} </s>", weight)


def build_conversation(
    scene: Scene, turns: Sequence[Question], style: str, rng: random.Random, caption: bool
) -> TextExample:
    """All turns about one described scene, after a caption turn if `caption` is true."""
    example = TextExample()
    example.add_text("user :")
    example.add_description(scene, style, rng)
    if caption:
        example.add_turn(rng.choice(CAPTION_INSTRUCTIONS), describe_scene(scene), CAPTION_WEIGHT)
    for index, turn in enumerate(turns):
        # the first turn's "user :" stands before the description, as it does before an image
        if index > 0 or caption:
            example.add_text("user :")
        example.add_turn(turn.question, turn.answer)
    return example


def make_copy_drill(rng: random.Random) -> TextExample:
    """A few random words over and over; from the second time on they can be known."""
    words = rng.sample(build_vocabulary()[DRILL_WORDS], rng.randint(3, 10))
    repetitions = COPY_DRILL_WORDS // len(words) - 1
    example = TextExample()
    example.add_text(" ".join(words))
    example.add_text(" ".join(words * repetitions), 1.0)
    return example


def make_lookup_drill(rng: random.Random) -> TextExample:
    """ "k1 v1 . k2 v2 . ..." and then the keys in any order, each to be answered by its value."""
    words = rng.sample(build_vocabulary()[DRILL_WORDS], 2 * rng.randint(2, 5))
    pairs = list(zip(words[::2], words[1::2], strict=True))
    example = TextExample()
    for key, value in pairs:
        example.add_text(f"{key} {value} .")
    for key, value in rng.sample(pairs, len(pairs)):
        example.add_text(key)
        example.add_text(value, 1.0)
        example.add_text(".")
    return example


def make_training_example(rng: random.Random, progress: float) -> TextExample:
    """An example for the moment `progress` (0 to 1): drills alone, then small scenes, then all sizes."""
    if progress < DRILL_SHARE or (progress < 0.3 and rng.random() < 0.05):
        make_drill = rng.choice((make_copy_drill, make_lookup_drill))
        return make_drill(rng)
    # from a tenth to three tenths of the training, scenes of all sizes come in
    all_sizes = rng.random() < (progress - 0.1) / 0.2
    most_objects = 7 if all_sizes else rng.randint(2, 4)
    scene = sample_scene(rng, objects=(min(3, most_objects - 1), most_objects))
    style = rng.choices(tuple(STYLE_SHARES), tuple(STYLE_SHARES.values()))[0]
    turns = ask_questions(scene, rng, turns_of=PRETRAINING_TURNS)
    if rng.random() < 0.2:
        relation_turns = ask_questions(scene, rng, turns_of=SIDE_TURNS)
        side_turns = [turn for turn in relation_turns if turn.kind == "which side"]
        if side_turns:
            turns = side_turns
    # prose is the caption itself: to describe it once more would teach copying
    caption = style in ("slots", "grid") and rng.random() < 0.2
    return build_conversation(scene, turns, style, rng, caption)


def collate_examples(
    examples: Sequence[TextExample], rows: int = 0, length: int = 0
) -> dict[str, np.ndarray]:
    """Right-padded arrays, of at least `rows` x `length`.

    ids (B, T, SLOT_WIDTH), weights and scales (B, T). Causal attention needs no mask for padding on the
    right.
    """
    rows = max(rows, len(examples))
    length = max(length, *(len(example.ids) for example in examples))
    ids = np.zeros((rows, length, SLOT_WIDTH), np.int64)
    weights = np.zeros((rows, length), np.float32)
    scales = np.zeros((rows, length), np.float32)
    for row, example in enumerate(examples):
        for column, tokens in enumerate(example.ids):
            ids[row, column, : len(tokens)] = tokens
        weights[row, : len(example.weights)] = example.weights
        scales[row, : len(example.scales)] = example.scales
    return {"ids": ids, "weights": weights, "scales": scales}
