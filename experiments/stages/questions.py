"""Questions of an evaluation -> batches of model inputs: those about one picture together, where its part of
the prompt can be shared."""

from collections.abc import Sequence

import torch
from torch import Tensor

from experiments.data import llava
from experiments.data.loader import SampleImages
from llm_adapters.conversation import Encoded, Turn
from llm_adapters.shared_prefix import SharedBatch


def batch_by_length(
    questions: Sequence[llava.Sample], images: SampleImages, size: int, share: bool = False
) -> list[list[int]]:
    """Question numbers, those of like length together, so that little is padded; to `share` prefixes, those
    about the same pictures."""
    first_of_pictures: dict[tuple, int] = {}
    keys = []
    for number, sample in enumerate(questions):
        first = first_of_pictures.setdefault(tuple(sample.images), number) if share else 0
        # crops first: a crop is many tokens, and the characters of a question only tell its tokens about
        keys.append((sum(images.crops(sample)), first, len(sample.turns[0].question)))
    order = sorted(range(len(questions)), key=keys.__getitem__)
    return [order[start : start + size] for start in range(0, len(order), size)]


def encode_batch(
    images: SampleImages, share: bool, questions: Sequence[llava.Sample]
) -> dict[str, Tensor] | SharedBatch:
    """Inputs of a batch of one-question samples, on the CPU."""
    rows: list[Encoded] = []
    for sample in questions:
        turn = Turn(sample.turns[0].question)  # without the answer
        rows.append(images.processor.encode([turn], images.crops(sample)))
    if share:
        length = find_prefix_length(rows, images.processor.image_token_id)
        pictures = [tuple(sample.images) for sample in questions]
        if length and len(set(pictures)) < len(questions):
            return make_shared_batch(images, questions, rows, length)
    return collate_rows(images, questions, rows)


def encode_questions(images: SampleImages, questions: Sequence[llava.Sample]) -> dict[str, Tensor]:
    """The same with nothing shared."""
    batch = encode_batch(images, False, questions)
    assert isinstance(batch, dict)  # it is not shared
    return batch


def collate_rows(
    images: SampleImages, questions: Sequence[llava.Sample], rows: Sequence[Encoded]
) -> dict[str, Tensor]:
    """Rows with their images, padded on the left: generation goes on from a row's last column."""
    batch = images.processor.collate(rows, "left")
    batch = images.add_images(batch, [images(sample, len(sample.images)) for sample in questions])
    del batch["labels"]
    return batch


def find_prefix_length(rows: Sequence[Encoded], image_token_id: int) -> int:
    """Tokens up to the last visual one, if they are as many in all rows and no words of a question are among
    them; else 0."""
    lengths = set()
    for row in rows:
        if image_token_id not in row.ids:
            return 0
        length = len(row.ids) - row.ids[::-1].index(image_token_id)
        lengths.add(length)
        for token, turn in zip(row.ids[:length], row.turns):
            if turn and token != image_token_id:
                return 0
    return lengths.pop() if len(lengths) == 1 else 0


def make_shared_batch(
    images: SampleImages, questions: Sequence[llava.Sample], rows: Sequence[Encoded], length: int
) -> SharedBatch:
    """Rows whose first `length` tokens are their pictures'."""
    numbers: dict[tuple, int] = {}  # by a question's pictures: its row of the prefix
    picture: list[int] = []
    first_questions: list[llava.Sample] = []
    prefix_rows: list[Encoded] = []
    ends: list[Encoded] = []
    for sample, row in zip(questions, rows):
        key = (tuple(sample.images), tuple(row.ids[:length]))
        if key not in numbers:
            numbers[key] = len(numbers)
            first_questions.append(sample)
            prefix_rows.append(slice_row(row, 0, length))
        picture.append(numbers[key])
        ends.append(slice_row(row, length, len(row.ids)))
    prefix = collate_rows(images, first_questions, prefix_rows)
    picture_of_row = torch.tensor(picture)
    ends_batch = images.processor.collate(ends, "left")
    whole_rows = {}
    for name in ("input_ids", "attention_mask", "turns"):
        whole_rows[name] = torch.cat([prefix[name][picture_of_row], ends_batch[name]], dim=1)
    query_index = ends_batch["query_index"]
    whole_rows["query_index"] = torch.where(query_index < 0, query_index, query_index + length)
    return SharedBatch(prefix, whole_rows, picture_of_row)


def slice_row(row: Encoded, start: int, end: int) -> Encoded:
    """Tokens of a row from `start` to before `end`; the images are with the first ones."""
    image_turns = [] if start else row.image_turns
    return Encoded(row.ids[start:end], row.labels[start:end], row.turns[start:end], image_turns)
