"""Rows of a data file, in whichever of the formats it has: found by looking into it.

JSON         a list, a record a sample
JSON lines   a line, a record
data set     a Parquet file, a folder that `save_to_disk` of Hugging Face's `datasets` has written, or
             `hf:NAME` (`stored.py`)

Each record is a conversation as LLaVA writes it ("conversations", `records.py`) or as transformers, TRL and
OpenAI do ("messages", `messages.py`); both may stand in one file.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from compressors.errors import UsageError
from compressors.reading import parse_json, read_text_file
from experiments.data import stored
from experiments.data.stored_images import read_records

FILE_SUFFIXES = (".json", ".jsonl")
LINES_SUFFIX = ".jsonl"


class Rows(NamedTuple):
    """The records of a file with their numbers, and what a row is called: sample 3, line 4, row 3."""

    noun: str
    records: Sequence[tuple[int, Any]]


def is_file_entry(entry: str) -> bool:
    """Whether an entry of data.train or another role is a file or a data set, not the name of a split."""
    return entry.endswith(FILE_SUFFIXES) or stored.is_dataset_entry(entry)


def read_rows(path: Path) -> Rows:
    """All rows of a file. UsageError for one without any, and for what is in no format."""
    if stored.is_dataset(path):
        rows = Rows("row", read_records(path))
    elif path.is_dir():
        raise UsageError(f"{path}: not a regular file, and no data set that `save_to_disk` has written")
    else:
        rows = parse_rows(path, read_text_file(path))
    if not rows.records:
        raise UsageError(f"{path}: no sample in it")
    return rows


def parse_rows(path: Path, text: str) -> Rows:
    """The rows of a JSON list or of JSON lines."""
    if are_lines(path, text):
        return Rows("line", list(parse_lines(path, text)))
    records = parse_json(text, str(path))
    if not isinstance(records, list):
        raise UsageError(f"{path}: expected a JSON list of samples, found a {type(records).__name__}")
    return Rows("sample", list(enumerate(records)))


def are_lines(path: Path, text: str) -> bool:
    """Whether a text is JSON lines: an object stands on the first of several, or the file's name says so of
    what is no list."""
    start = text.lstrip()
    if path.suffix == LINES_SUFFIX:
        return not start.startswith("[")
    if not start.startswith("{"):
        return False
    first_line, _, further_lines = start.partition("\n")
    if not further_lines.strip():
        return False
    try:
        return isinstance(parse_json(first_line, ""), dict)
    except UsageError:  # an object of several lines
        return False


def parse_lines(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(number of the line, its record), without empty lines. UsageError for a line that is no JSON."""
    # not splitlines: a line separator of Unicode may stand inside a text
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, parse_json(line, f"{path}, line {number}")
