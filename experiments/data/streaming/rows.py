"""Rows of shards -> samples, and what is looked at before a stage begins. No torch."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from compressors.errors import UsageError, quote
from compressors.reading import parse_json
from experiments.config.schema import Config
from experiments.data import llava, stored
from experiments.data.records import Sample, parse_record
from experiments.data.streaming.reading import count_row_bytes, read_rows
from experiments.data.streaming.shards import Shard, open_stream
from experiments.runtime.memory import remember_for_request

CHECKED_ROWS = 64  # of an entry, before anything runs


class StreamedRow(NamedTuple):
    """A row as it is drawn, and handed to whoever reads it.

    place    where it is, for an error
    number   in its shard, counted from 0
    folder   where names of its pictures start
    content  its record, or a line of JSON
    """

    place: str
    number: int
    folder: str
    content: Any


class RowRules(NamedTuple):
    """What rows have to keep to, as `parse_record` has it; `images`: data.images."""

    images: str | None
    outside_images: bool
    end: str
    system: str


def make_rules(config: Config) -> RowRules:
    """What the rows of a cell have to keep to."""
    data = config.data
    return RowRules(data.images, data.outside_images, config.prompt.end, config.prompt.system)


def draw_rows(shard: Shard, start: int = 0) -> Iterator[StreamedRow]:
    """The rows of a shard from number `start` on."""
    for number, content in read_rows(shard, start):
        yield StreamedRow(shard.describe_row(number), number, shard.folder, content)


def parse_row(row: StreamedRow, rules: RowRules) -> Sample:
    """A row as a sample; UsageError, with its shard and number, for what is wrong with it. Its pictures are
    not opened."""
    record = row.content
    if isinstance(record, str):
        record = parse_json(record, row.place)
    root = Path(rules.images or row.folder)
    try:
        sample = parse_record(record, row.number, root, rules.outside_images, rules.end, rules.system)
    except UsageError as error:
        raise UsageError(f"{row.place}{llava.name_id(record)}: {error}") from error
    return sample._replace(place=row.place)


@remember_for_request(most=stored.OPEN_SETS)
def list_first_rows(entry: str) -> tuple[StreamedRow, ...]:
    """The first rows of an entry's first shard. UsageError where it has none."""
    rows = tuple(islice(draw_rows(open_stream(entry).shards[0]), CHECKED_ROWS))
    if not rows:
        raise UsageError(f"{quote(entry)}: no sample in {open_stream(entry).shards[0].name}")
    return rows


def check_first_rows(entry: str, rules: RowRules, with_images: bool = True, bad_rows: int = 0) -> None:
    """UsageError for what is wrong with the first rows of an entry, or with their pictures, unless `bad_rows`
    of them may be left out: a data set in another format is found before anything runs."""
    rows = list_first_rows(entry)
    faults = 0
    for row in rows:
        try:
            sample = parse_row(row, rules)
            if with_images:
                for number in range(len(sample.images)):
                    llava.read_image_size(sample, number)
        except UsageError:
            faults += 1
            if faults > bad_rows or faults == len(rows):
                raise


def measure_row_bytes(entry: str) -> float:
    """About how large a row of an entry is, by its first ones."""
    sizes = [count_row_bytes(row.content) for row in list_first_rows(entry)]
    return max(1.0, sum(sizes) / len(sizes))
