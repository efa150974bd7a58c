"""LLaVA-format data: a JSON list of conversations and a folder of images.

    [{"id": "7", "image": "coco/7.jpg" | ["a.png", "b.png"] | absent,
      "conversations": [{"from": "human", "value": "<image>\\nWhat is this?"},
                        {"from": "gpt", "value": "a fox"}, ...],
      "families": ["recognition", ...]}]            optional, one for each question: how results are grouped

Every `<image>` in a question stands for the next image; a sample whose questions mention none has its images
before the first one, as in LLaVA. Whatever is wrong is one line with the file and the index of the sample.
"""

import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from compressors.errors import UsageError
from llm_adapters import orientation
from llm_adapters.conversation import IMAGE, Turn

SPEAKERS = ("human", "gpt")
UNNAMED_FAMILY = "all"  # the family of questions that name none


class Sample(NamedTuple):
    """One conversation. Its questions have exactly as many `<image>` markers as it has images."""

    id: str
    images: tuple[Path, ...]
    turns: tuple[Turn, ...]
    families: tuple[str, ...] | None = None  # one for each turn

    def name_family(self, turn: int = 0) -> str:
        """The family of a turn's question."""
        return self.families[turn] if self.families else UNNAMED_FAMILY


# ---- files ----


def load_samples(path: Path, images: Path | None = None, check_images: bool = True) -> list[Sample]:
    """All samples of a JSON file, validated; images are looked for in `images`, else beside the file."""
    root = find_image_folder(path, images)
    samples: list[Sample] = []
    with pause_garbage_collection():
        for index, record in enumerate(read_records(Path(path))):
            try:
                samples.append(parse_record(record, index, root))
            except UsageError as error:
                raise UsageError(f"{path}, sample {index}: {error}") from error
    if check_images:
        require_images(path, samples)
    return samples


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
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not JSON ({error}); LLaVA format is a JSON list of samples") from error
    if not isinstance(records, list):
        raise UsageError(f"{path}: expected a JSON list of samples, found a {type(records).__name__}")
    if not records:
        raise UsageError(f"{path}: no sample in it")
    return records


def require_images(path: Path, samples: list[Sample]) -> None:
    """UsageError with the first sample whose image does not exist."""
    present: set[str] = set()
    for index, sample in enumerate(samples):
        for image in map(str, sample.images):
            # conversations share images, and a look at the disk is slow over a network
            if image not in present and not os.path.isfile(image):
                raise UsageError(f"{path}, sample {index}: no image {image}; is data.images right?")
            present.add(image)


# ---- one record ----


def parse_record(record: object, index: int, root: Path) -> Sample:
    """One record as a Sample; a UsageError tells what is wrong with it."""
    if not isinstance(record, dict):
        raise UsageError(f'expected an object with "conversations", found a {type(record).__name__}')
    if "conversations" not in record:
        raise UsageError(f'no "conversations"; it has {", ".join(map(str, record)) or "no key"}')
    names = parse_image_names(record.get("image"))
    turns = parse_turns(record["conversations"])
    families = record.get("families")
    if families is not None and (not isinstance(families, list) or len(families) != len(turns)):
        raise UsageError(f'"families" must be a list with one name for each of the {len(turns)} questions')
    if families is not None:
        families = tuple(map(str, families))
    images = tuple(root / name for name in names)
    marked_turns = place_image_markers(turns, len(names))
    return Sample(str(record.get("id", index)), images, marked_turns, families)


def parse_image_names(content: object) -> list[str]:
    """The names in "image": one, several or none."""
    if content is None:
        return []
    if not isinstance(content, list):
        content = [content]
    names: list[str] = []
    for name in content:
        if not isinstance(name, str) or not name:
            raise UsageError(f'"image" must be a file name or a list of them, found {name!r}')
        names.append(name)
    return names


def parse_turns(messages: object) -> tuple[Turn, ...]:
    """human, gpt, human, gpt, ... as turns."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise UsageError('"conversations" must be human and gpt messages in turn, ending with gpt')
    texts: list[str] = []
    for i, message in enumerate(messages):
        speaker = SPEAKERS[i % 2]
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            raise UsageError(f'message {i} must be {{"from": "{speaker}", "value": TEXT}}')
        text = message["value"]
        if message.get("from") != speaker:
            raise UsageError(f'message {i} is from {message.get("from")!r}, expected "{speaker}"')
        # a question of an image alone has nothing to answer
        if not text.replace(IMAGE, "").strip():
            raise UsageError(f"message {i}, from {speaker}, is empty; fill it in or drop the turn")
        texts.append(text.strip())
    questions = texts[::2]
    answers = texts[1::2]
    return tuple(map(Turn, questions, answers))


def place_image_markers(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    """The turns with one marker an image; those of a sample without any go before its first question."""
    markers = sum(turn.question.count(IMAGE) for turn in turns)
    if images and not markers:
        first = turns[0]._replace(question=f"{IMAGE}\n" * images + turns[0].question)
        return (first, *turns[1:])
    if markers != images:
        raise UsageError(f'{markers} {IMAGE} in its questions, but {images} image(s) in "image"')
    return turns


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
            questions.append(Sample(f"{sample.id}#{i}", sample.images[:images], (question,), family))
            earlier_images = images
    return questions


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
        with Image.open(sample.images[i]) as image:
            yield image
    except FileNotFoundError as error:
        raise UsageError(f"sample {sample.id}: no image {sample.images[i]}") from error
    except orientation.IMAGE_ERRORS as error:
        raise UsageError(
            f"sample {sample.id}: image {sample.images[i]} is truncated or no image "
            f"({error}); replace it or drop the sample"
        ) from error
