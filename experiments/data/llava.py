"""LLaVA-format data: a JSON list of conversations and a folder of images.

    [{"id": "7", "image": "coco/7.jpg" | ["a.png", "b.png"] | absent,
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                        {"from": "gpt", "value": "a fox"}, ...],
      "families": ["recognition", ...],             optional, one for each question: how results are grouped
      "accepted": [["fox", "red fox"], ...]}]       optional, for each question all answers that are right

Every `<image>` in a question stands for the next image; a sample whose questions mention none has its images
before the first one, as in LLaVA. Whatever is wrong, or would not be read, is one line with the file and the
index of the sample (`records.py`).
"""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from compressors.errors import UsageError, quote
from compressors.reading import check_regular_file, read_json_file
from experiments.data.records import Sample, parse_record
from llm_adapters import orientation
from llm_adapters.conversation import IMAGE, Turn

MAX_LISTED = 10  # samples or images that one error names


class BrokenImage(UsageError):
    """An image that cannot be read."""


# ---- files ----


def load_samples(
    path: Path,
    images: Path | None = None,
    check_images: bool = True,
    outside_images: bool = False,
    end: str = "",
) -> list[Sample]:
    """All samples of a JSON file, validated; images are looked for in `images`, else beside the file.
    `outside_images` and `end`: as for `parse_record`. UsageError with the first wrong sample and the numbers
    of others."""
    root = find_image_folder(path, images)
    samples: list[Sample] = []
    problems: dict[int, str] = {}
    with pause_garbage_collection():
        for index, record in enumerate(read_records(Path(path))):
            try:
                samples.append(parse_record(record, index, root, outside_images, end))
            except UsageError as error:
                problems[index] = str(error)
    if problems:
        first = next(iter(problems))
        count = describe_count("samples are wrong", list(map(str, problems)))
        raise UsageError(f"{path}, sample {first}: {problems[first]}{count}")
    if check_images:
        require_images(path, samples)
    return samples


def describe_count(what: str, names: list[str]) -> str:
    """ " (12 samples are wrong: 3, 4, ...)"; nothing for one alone."""
    if len(names) < 2:
        return ""
    listed = ", ".join(quote(name) for name in names[:MAX_LISTED])
    more = ", ..." if len(names) > MAX_LISTED else ""
    return f" ({len(names)} {what}: {listed}{more})"


@contextmanager
def pause_garbage_collection() -> Iterator[None]:
    """No garbage collection while millions of objects are made, none of them garbage: halves the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def find_image_folder(path: Path | str, images: Path | str | None) -> Path:
    """Where the image names of `path` start."""
    if images:
        return Path(images)
    return Path(path).parent


def read_records(path: Path) -> list[Any]:
    """The JSON list of a file."""
    records = read_json_file(path)
    if not isinstance(records, list):
        raise UsageError(f"{path}: expected a JSON list of samples, found a {type(records).__name__}")
    if not records:
        raise UsageError(f"{path}: no sample in it")
    return records


def require_images(path: Path, samples: list[Sample]) -> None:
    """UsageError with the first sample whose image does not exist, and how many do not."""
    looked_for: set[str] = set()
    missing: dict[str, int] = {}  # image -> its first sample
    for index, sample in enumerate(samples):
        for image in map(str, sample.images):
            # conversations share images, and a look at the disk is slow over a network
            if image not in looked_for and not os.path.isfile(image):
                missing[image] = index
            looked_for.add(image)
    if missing:
        image = next(iter(missing))
        count = describe_count("images are missing", list(missing))
        raise UsageError(
            f"{path}, sample {missing[image]}: no image {quote(image)}; is data.images right?{count}"
        )


# ---- samples ----


def split_questions(samples: list[Sample]) -> list[Sample]:
    """Every turn as a sample of its own with all images shown up to it, those of earlier turns first."""
    questions: list[Sample] = []
    for sample in samples:
        earlier_images = 0
        for i, turn in enumerate(sample.turns):
            images = earlier_images + turn.question.count(IMAGE)
            # images of earlier turns have their markers in questions that are left out
            question = Turn(f"{IMAGE}\n" * earlier_images + turn.question, turn.answer)
            family = None
            if sample.families:
                family = (sample.families[i],)
            accepted = None
            if sample.accepted:
                accepted = (sample.accepted[i],)
            name = f"{sample.id}#{i}"
            questions.append(Sample(name, sample.images[:images], (question,), family, accepted))
            earlier_images = images
    return questions


def drop_answers(questions: list[Sample]) -> list[Sample]:
    """One-question samples as an evaluation asks them."""
    asked: list[Sample] = []
    for sample in questions:
        turn = Turn(sample.turns[0].question)
        asked.append(sample._replace(turns=(turn,)))
    return asked


def open_image(sample: Sample, i: int = 0) -> Image.Image:
    """A sample's i-th image in RGB and upright, wholly read; UsageError if it is missing or damaged."""
    with open_image_file(sample, i) as image:
        return orientation.convert_to_upright_rgb(image)


def read_image_size(sample: Sample, i: int = 0) -> tuple[int, int]:
    """(width, height) of a sample's i-th image, from its header; UsageError as `open_image`."""
    with open_image_file(sample, i) as image:
        return orientation.read_upright_size(image)


@contextmanager
def open_image_file(sample: Sample, i: int) -> Iterator[Image.Image]:
    """A sample's i-th image while it is read; UsageError for what is wrong with it."""
    try:
        if sample.images[i].exists():
            check_regular_file(sample.images[i])
        with Image.open(sample.images[i]) as image:
            yield image
    except FileNotFoundError as error:
        raise BrokenImage(f"sample {quote(sample.id)}: no image {quote(sample.images[i])}") from error
    except UsageError as error:
        raise BrokenImage(f"sample {quote(sample.id)}: image {quote(sample.images[i])}: {error}") from error
    except orientation.IMAGE_ERRORS as error:
        raise BrokenImage(
            f"sample {quote(sample.id)}: image {quote(sample.images[i])} is truncated or no image "
            f"({quote(error)}); replace it or drop the sample"
        ) from error


@contextmanager
def report_all_broken_images(samples: Iterable[Sample]) -> Iterator[None]:
    """The first broken image that is met has all images of `samples` read: one run names them all."""
    try:
        yield
    except BrokenImage as error:
        problems = find_broken_images(samples)
        count = describe_count("images cannot be read", list(problems))
        raise UsageError(f"{next(iter(problems.values()), error)}{count}") from error


def find_broken_images(samples: Iterable[Sample]) -> dict[str, str]:
    """What is wrong with each image that cannot be read, by its path."""
    problems: dict[str, str] = {}
    looked_at: set[Path] = set()
    for sample in samples:
        for number, path in enumerate(sample.images):
            if path in looked_at:
                continue
            looked_at.add(path)
            try:
                open_image(sample, number)
            except BrokenImage as error:
                problems[str(path)] = str(error)
    return problems
