"""Whether the rows of data files fit into the language model's positions, before any stage begins. Rows of
the embedded data set are looked at by the stages, when it is there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from compressors.errors import UsageError, quote
from experiments.config.cells import make_alignment_config, make_training_config
from experiments.config.schema import Config
from experiments.data import llava, roles
from experiments.data.loader import (
    SPACES_OF_A_TURN,
    ConversationDataset,
    SampleImages,
    tell_left_out,
)
from experiments.models import build, pretrained
from experiments.runtime.memory import remember_for_request
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor


class RowFile(NamedTuple):
    """A data file, and which of its rows a stage reads."""

    path: Path
    images: Path | None
    outside_images: bool
    is_test: bool
    limit: int | None  # of a test's questions


class RowShape(NamedTuple):
    """What a row has beside its text."""

    images: int
    turns: int


def check_row_lengths(config: Config) -> None:
    """UsageError for a row of a data file that is longer than the LLM's positions: text, visual and query
    tokens together, in evaluation the answer's, too. No weights are read."""
    trained = make_training_config(config)
    with torch.device("meta"):
        model, size = build.build_skeleton(trained)
    if model.config.position_limit is None:
        return
    check_shortest_row(trained, model, size)
    for role in ("train", "validation"):
        check_files(trained, list_role_files(config, role), model, size)
    alignment_files = list_role_files(config, "pretrain")
    if alignment_files and config.aligns:
        aligned = make_alignment_config(config)
        with torch.device("meta"):
            model, size = build.build_skeleton(aligned)
        check_files(aligned, alignment_files, model, size)
    test_files = list_role_files(config, "test")
    if test_files:
        with torch.device("meta"):
            model, size = build.build_skeleton(config)
        check_files(config, test_files, model, size)


def check_shortest_row(config: Config, model: FlashSlothForConditionalGeneration, size: int) -> None:
    """UsageError where an image and a query alone have more tokens than the LLM has positions."""
    if config.blind:
        return
    tiling = build.make_tiling(config, size)
    crops = tiling.most_crops if tiling.fixed else 1
    tokens = model.num_image_tokens(size, size) * crops + model.num_queries
    left_out = model.num_left_out(size, size) * crops
    if tokens + left_out > model.config.position_limit:
        raise UsageError(
            f"compressor={config.compressor}: an image and a query have {tokens} "
            f"tokens{tell_left_out(left_out)}, but llm.source={quote(config.llm.source)} has "
            f"{model.config.position_limit} positions; take a compressor or a rate with "
            "fewer tokens, or fewer image.tiles"
        )


def list_role_files(config: Config, role: str) -> list[RowFile]:
    """The data files of a role; splits of an embedded data set are none, and streams are looked at as they
    are read."""
    if config.streams(role):
        return []
    images = Path(config.data.images) if config.data.images else None
    is_test = role == "test"
    limit = config.evaluate.limit if is_test else None
    files: list[RowFile] = []
    for entry in getattr(config.data, role):
        if not roles.is_file_entry(entry):
            continue
        if files and limit is not None:  # of all files together
            limit = max(0, limit - len(load_rows(files[-1])))
        files.append(RowFile(Path(entry), images, config.data.outside_images, is_test, limit))
    return files


def check_files(
    config: Config, files: Sequence[RowFile], model: FlashSlothForConditionalGeneration, size: int
) -> None:
    """UsageError for the first row of the files that is too long."""
    positions = model.config.position_limit
    assert positions is not None  # asked by the caller
    for file in files:
        # a test's texts are not cut, and its answers are to come
        max_length = None if file.is_test else config.data.max_length
        new_tokens = config.evaluate.max_new_tokens if file.is_test else 0
        visual = 0
        if not config.blind:
            positions_of_crop = model.num_image_tokens(size, size) + model.num_left_out(size, size)
            visual = positions_of_crop * build.make_tiling(config, size).most_crops
        longest = bound_longest_row(config, visual, model.num_queries, measure_texts(file), max_length)
        if longest + new_tokens <= positions:
            continue
        processor = build.make_processor(config, model, pretrained.load_tokenizer(config))
        dataset = ConversationDataset(load_rows(file), SampleImages(processor), max_length)
        dataset.check_positions(positions, new_tokens, model.num_left_out(size, size))


def check_taught_rows(
    config: Config,
    teacher: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
    where: str,
) -> None:
    """UsageError, from `where`, for a row of stage 2's files that has more tokens for a teacher than its LLM
    has positions; for an image and a query that have, whatever the data. `teacher`: without weights."""
    positions = teacher.config.position_limit
    if positions is None:
        return
    left_out = teacher.num_left_out(*processor.crop_size)
    visual = (processor.image_tokens + left_out) * processor.crops
    if visual + processor.num_queries > positions and processor.tiling.fixed:
        raise UsageError(
            f"{where}: an image and a query have {visual + processor.num_queries} tokens for it"
            f"{tell_left_out(left_out * processor.crops)}, its language model has {positions} positions; "
            "take another teacher"
        )
    for file in list_role_files(config, "train"):
        max_length = config.data.max_length
        shapes = measure_texts(file)
        if bound_longest_row(config, visual, processor.num_queries, shapes, max_length) <= positions:
            continue
        dataset = ConversationDataset(load_rows(file), SampleImages(processor), max_length)
        try:
            dataset.check_positions(positions, left_out=left_out)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error


def bound_longest_row(
    config: Config, visual: int, queries: int, shapes: Mapping[RowShape, int], max_length: int | None
) -> int:
    """At least as many tokens as the longest row has, found without a tokenizer: a text has no more of them
    than bytes. `visual`: positions of an image at most; `queries`: query tokens of a turn."""
    prompt = config.prompt
    words = len((prompt.user + prompt.assistant + prompt.end).encode()) + SPACES_OF_A_TURN
    longest = 0
    for shape, text in shapes.items():
        text += len(prompt.system.encode()) + shape.turns * words
        row = min(text, max_length or text) + shape.images * visual + shape.turns * queries
        longest = max(longest, row)
    return longest


def load_rows(file: RowFile) -> Sequence[llava.Sample]:
    """A file's conversations, of a test its questions without answers."""
    samples = llava.load_samples(file.path, file.images, False, file.outside_images)
    if not file.is_test:
        return samples
    return llava.drop_answers(llava.split_questions(samples))[: file.limit]


@remember_for_request()
def measure_texts(file: RowFile) -> dict[RowShape, int]:
    """Bytes of the longest text of each shape of row."""
    longest: dict[RowShape, int] = {}
    for sample in load_rows(file):
        text = 0
        for turn in sample.turns:
            text += len(turn.question.encode()) + len((turn.answer or "").encode())
        shape = RowShape(len(sample.images), len(sample.turns))
        longest[shape] = max(text, longest.get(shape, 0))
    return longest
