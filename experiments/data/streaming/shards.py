"""The shards of a data set that is streamed. No torch.

    FOLDER/*.parquet, FOLDER/*.jsonl        files by a pattern, or one file by its name
    FOLDER[:SPLIT]                          what `save_to_disk` has written, else shards in a folder, as
                                            `load_dataset` finds them; SPLIT is train
    hf:NAME[@REVISION][:CONFIG][:SPLIT]     what `load_dataset` finds by NAME, on the hub or in a folder

Hugging Face's `datasets` finds and opens them, on disk or on the hub. The order in which rows are drawn is
ours (`order.py`).
"""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from compressors.errors import UsageError, quote, shorten_reason
from compressors.reading import read_json_object
from experiments.data import stored
from experiments.data.formats import LINES_SUFFIX
from experiments.runtime.memory import remember_for_request

READERS = {".parquet": "parquet", ".jsonl": "text", ".json": "text", ".arrow": "arrow"}  # of `datasets`
LINES_READER = "text"  # the library's own reader of JSON wants the same types in all rows
PATTERN_CHARACTERS = "*?["
ADDRESS = "://"  # in the names of files that are not on this machine


@dataclass(frozen=True)
class Shard:
    """A file of a data set that is streamed.

    entry   of the settings, which names the data set
    number  of the entry's shards
    name    of the file, or its address
    lines   whether it is JSON lines
    """

    entry: str
    number: int
    name: str
    lines: bool

    @property
    def is_local(self) -> bool:
        """Whether its size and time can be asked for without a network."""
        return ADDRESS not in self.name

    @property
    def folder(self) -> str:
        """Where names of pictures in its rows start, unless data.images says so."""
        return os.path.dirname(self.name)

    def describe_row(self, number: int) -> str:
        """Where a row is, for an error. Lines are counted from 1."""
        if self.lines:
            return f"{self.name}, line {number + 1}"
        return f"{self.name}, row {number}"


class OpenedStream(NamedTuple):
    """A `datasets.IterableDataset` and its shards, in its order."""

    dataset: Any
    shards: tuple[Shard, ...]


@remember_for_request(most=stored.OPEN_SETS)
def open_stream(entry: str) -> OpenedStream:
    """The data set of an entry. No row is read; UsageError where there is none, or none that can be
    streamed."""
    stored.require_datasets(entry)
    files = find_local_files(entry)
    if files is not None:
        reader = choose_reader(entry, files)
        return open_files(entry, reader, files)
    match = stored.match_hub_entry(complete_folder_entry(entry))
    builder = load_builder(entry, match["name"], name=match["config"], revision=match["revision"])
    split = match["split"] or stored.DEFAULT_SPLIT
    files_of_splits = {str(name): list(names) for name, names in (builder.config.data_files or {}).items()}
    stored.check_split(entry, split, list(files_of_splits))
    split_files = files_of_splits[split]
    if all(LINES_SUFFIX in os.path.basename(name) for name in split_files):
        return open_files(entry, LINES_READER, split_files)
    return make_stream(entry, builder, split, split_files, lines=False)


def find_local_files(entry: str) -> list[str] | None:
    """The files of a pattern or a name, or in a folder that `save_to_disk` has written; None for what the
    library is asked for."""
    if entry.startswith(stored.HUB_SCHEME):
        return None
    if Path(entry).is_file():
        return [entry]
    is_pattern = any(character in entry for character in PATTERN_CHARACTERS)
    if is_pattern or Path(entry).suffix in READERS:
        files = sorted(glob.glob(entry))
        if not files:
            raise UsageError(f"{quote(entry)}: no such file")
        return files
    if stored.is_dataset(entry):
        return list_saved_files(entry)
    return None


def list_saved_files(entry: str) -> list[str]:
    """The Arrow files of a folder that `save_to_disk` has written, or of one of its splits."""
    folder, split = stored.split_folder_entry(entry)
    splits = None
    if not (folder / stored.STATE_FILE).is_file():
        splits = read_json_object(folder / stored.SPLITS_FILE).get("splits", [])
    stored.check_folder_split(entry, splits)
    folder /= split or ""
    state = read_json_object(folder / stored.STATE_FILE)
    return [str(folder / file["filename"]) for file in state.get("_data_files", [])]


def complete_folder_entry(entry: str) -> str:
    """A folder's entry as `hf:` has it."""
    if entry.startswith(stored.HUB_SCHEME):
        return entry
    folder, _ = stored.split_folder_entry(entry)
    if not folder.is_dir():
        raise UsageError(f"{quote(entry)}: no such folder; give shards, as ./FOLDER/*.parquet, or hf:NAME")
    return f"{stored.HUB_SCHEME}{entry}"


def choose_reader(entry: str, files: Sequence[str]) -> str:
    """What reads the files; UsageError for files of several kinds, and for a JSON list."""
    suffixes = sorted({Path(file).suffix for file in files})
    readers = {READERS.get(suffix) for suffix in suffixes}
    if len(readers) > 1 or None in readers:
        raise UsageError(
            f"{quote(entry)}: files of {', '.join(suffixes) or 'no'} cannot be streamed; give shards of one "
            "kind, .parquet or .jsonl"
        )
    for file in files:
        if file.endswith(".json"):
            refuse_json_list(file)
    return READERS[suffixes[0]]


def refuse_json_list(path: str) -> None:
    """UsageError for a file that is one JSON list: all of it would have to be read for its first row."""
    with open(path, "rb") as file:
        start = file.read(1 << 16).lstrip()
    if start.startswith(b"["):
        raise UsageError(
            f"{quote(path)}: a JSON list cannot be streamed; write its samples as JSON lines, each on a line "
            "of its own (jq -c '.[]')"
        )


def open_files(entry: str, reader: str, files: Sequence[str]) -> OpenedStream:
    """Files as one data set."""
    for file in files:
        if ADDRESS not in file and not os.path.getsize(file):
            raise UsageError(f"{quote(file)}: no sample in it")
    builder = load_builder(entry, reader, data_files=list(files))
    return make_stream(entry, builder, stored.DEFAULT_SPLIT, files, reader == LINES_READER)


def load_builder(entry: str, source: str, **options: Any) -> Any:
    """What `datasets` streams a data set with; it runs no code of the data set."""
    import datasets  # a second, and an optional package

    try:
        with stored.hide_progress_bars():
            return datasets.load_dataset_builder(source, **options)
    # no network, no such data set, no permission, in the words of several libraries
    except Exception as error:
        raise UsageError(f"{quote(entry)}: cannot be opened ({shorten_reason(error)})") from error


def make_stream(entry: str, builder: Any, split: str, files: Sequence[str], lines: bool) -> OpenedStream:
    """A builder's split with its shards."""
    try:
        with stored.hide_progress_bars():
            dataset = builder.as_streaming_dataset(split=split)
    # damaged files raise anything
    except Exception as error:
        raise UsageError(f"{quote(entry)}: cannot be streamed ({shorten_reason(error)})") from error
    names = list(files)
    if dataset.num_shards != len(names):  # of a kind whose shards are not its files
        names = [f"{entry}, shard {number}" for number in range(dataset.num_shards)]
    shards = [Shard(entry, number, name, lines) for number, name in enumerate(names)]
    return OpenedStream(dataset, tuple(shards))


def describe_shards(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """Name, size and time of each shard, for a key; of one on the hub its address, in which the commit
    stands."""
    descriptions: list[dict[str, Any]] = []
    for shard in shards:
        if shard.is_local and os.path.exists(shard.name):
            descriptions.append(stored.describe_file(shard.name))
        else:
            descriptions.append({"name": shard.name})
    return descriptions
