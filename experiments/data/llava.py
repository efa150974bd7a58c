"""Conversations and their images, from files in LLaVA's format and others (`formats.py` lists them).

    [{"id": "7", "image": "coco/7.jpg" | ["a.png", "b.png"] | absent,
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                        {"from": "gpt", "value": "a fox"}, ...],
      "families": ["recognition", ...],             optional, one for each question: how results are grouped
      "accepted": [["fox", "red fox"], ...]}]       optional, for each question all answers that are right

Every `<image>` in a question stands for the next image; a sample whose questions mention none has its images
before the first one, as in LLaVA. Whatever is wrong, or would not be read, is one line with the file, the
sample's number or line, and its id (`records.py`).
"""

import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from compressors.errors import UsageError, quote
from compressors.reading import check_regular_file
from experiments.data import stored
from experiments.data.formats import read_rows
from experiments.data.records import ImageFile, Sample, parse_record, read_id
from experiments.data.stored_images import StoredImage
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
    system: str | None = None,
) -> list[Sample]:
    """All samples of a file or data set, validated; images are looked for in `images`, else beside the file.
    `outside_images`, `end` and `system`: as for `parse_record`. UsageError with the first wrong sample and
    the numbers of others."""
    root = find_image_folder(path, images)
    samples: list[Sample] = []
    problems: dict[int, str] = {}
    with pause_garbage_collection():
        rows = read_rows(Path(path))
        for index, (number, record) in enumerate(rows.records):
            place = f"{path}, {rows.noun} {number}"
            try:
                sample = parse_record(record, index, root, outside_images, end, system)
            except UsageError as error:
                problems[number] = f"{place}{name_id(record)}: {error}"
            else:
                samples.append(sample._replace(place=place))
    if problems:
        count = describe_count("samples are wrong", list(map(str, problems)))
        raise UsageError(f"{next(iter(problems.values()))}{count}")
    if check_images:
        require_images(samples)
    return samples


def name_id(record: object) -> str:
    """ " (id 7)"; nothing for a record without one."""
    try:
        name = read_id(record, -1)
    except UsageError:  # half a character
        return ""
    return "" if name == "-1" else f" (id {quote(name)})"


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
    if stored.is_dataset(path) and not stored.is_parquet_file(path):
        return Path(stored.locate_dataset(path))
    return Path(path).parent


def require_images(samples: list[Sample]) -> None:
    """UsageError with the first sample whose image does not exist, and how many do not."""
    looked_for: set[str] = set()
    missing: dict[str, Sample] = {}  # image -> its first sample
    for sample in samples:
        for path in sample.images:
            if isinstance(path, StoredImage):
                continue
            image = str(path)
            # conversations share images, and a look at the disk is slow over a network
            if image not in looked_for and not os.path.isfile(image):
                missing[image] = sample
            looked_for.add(image)
    if missing:
        image = next(iter(missing))
        place = missing[image].describe_place()
        count = describe_count("images are missing", list(missing))
        raise UsageError(f"{place}: no image {quote(image)}; is data.images right?{count}")


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
            shown_images = sample.images[:images]
            questions.append(Sample(name, shown_images, (question,), family, accepted, sample.place))
            earlier_images = images
    return questions


def drop_answers(questions: list[Sample]) -> list[Sample]:
    """One-question samples as an evaluation asks them."""
    unanswered: list[Sample] = []
    for sample in questions:
        turn = Turn(sample.turns[0].question)
        unanswered.append(sample._replace(turns=(turn,)))
    return unanswered


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
    path = sample.images[i]
    place = sample.describe_place()
    try:
        if isinstance(path, Path) and path.exists():
            check_regular_file(path)
        with Image.open(path if isinstance(path, Path) else path.open()) as image:
            yield image
    except FileNotFoundError as error:
        raise BrokenImage(f"{place}: no image {quote(path)}") from error
    except UsageError as error:
        raise BrokenImage(f"{place}: image {quote(path)}: {error}") from error
    except orientation.IMAGE_ERRORS as error:
        raise BrokenImage(
            f"{place}: image {quote(path)} is truncated or no image ({quote(error)}); replace it or drop the "
            "sample"
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
    looked_at: set[ImageFile] = set()
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
