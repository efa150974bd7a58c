"""Questions of an evaluation -> batches of model inputs: those about one picture together, where its part of
the prompt can be shared."""

from collections.abc import Sequence

from torch import Tensor

from experiments.data import llava
from experiments.data.loader import SampleImages
from llm_adapters.conversation import Encoded, Turn
from llm_adapters.shared_prefix import (
    SharedBatch,
    find_prefix_length,
    group_rows,
    join_rows,
    slice_row,
)


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


def make_shared_batch(
    images: SampleImages, questions: Sequence[llava.Sample], rows: Sequence[Encoded], length: int
) -> SharedBatch:
    """Rows whose first `length` tokens are the same for all questions about a picture."""
    first_rows, picture = group_rows(rows, [tuple(sample.images) for sample in questions], length)
    prefix_rows = [slice_row(rows[number], 0, length) for number in first_rows]
    prefix = collate_rows(images, [questions[number] for number in first_rows], prefix_rows)
    return join_rows(images.processor, prefix, rows, picture, length)
