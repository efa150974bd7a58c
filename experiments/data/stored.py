"""Data sets of Hugging Face's `datasets`: rows with their images in Arrow files, which stay on disk.

    FOLDER[:SPLIT]                          what `save_to_disk` has written; its name has a slash: ./mine
    FILE.parquet                            which `load_dataset` copies as Arrow into its cache
    hf:NAME[@REVISION][:CONFIG][:SPLIT]     what `load_dataset` finds by NAME: on the hub, in the cache of an
                                            earlier download, or a folder of Parquet files; SPLIT is train

Texts are read into memory once, an image each time that it is looked at, from a file that is mapped into
memory: a set may be larger than memory. One that is larger than the disk, too, is streamed (`streaming/`).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from compressors.errors import UsageError, quote, shorten_reason
from compressors.registry import suggest

HUB_SCHEME = "hf:"
PARQUET_SUFFIX = ".parquet"
DEFAULT_SPLIT = "train"
HUB_NAME = re.compile(
    r"hf:(?P<name>[^@:]+)(@(?P<revision>[^@:]+))?(:(?P<config>[^@:]+)(?=:))?(:(?P<split>[\w.-]+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")  # how the cache calls a version of a data set on the hub
SPLITS_FILE = "dataset_dict.json"  # in a folder of several splits
STATE_FILE = "state.json"  # in the folder of a split
IMAGE_FIELDS = {"bytes", "path"}  # of an image in Arrow
ROWS_AT_ONCE = 1000
OPEN_SETS = 16  # how many are kept open in a process


class StoredImage(NamedTuple):
    """An image in a data set's Arrow files. As a path it is a name that no file has, the same in every run.

    entry   of the settings, which names the data set
    column  "image" or "images"
    row     counted from 0
    number  of the row's images
    """

    entry: str
    column: str
    row: int
    number: int

    def __fspath__(self) -> str:
        return f"{locate_dataset(self.entry)}/{self.column}/{self.row}/{self.number}"

    def __str__(self) -> str:
        return f"{self.entry}, row {self.row}, {self.column} {self.number}"

    @property
    def name(self) -> str:
        """What it would be called as a file."""
        return f"{self.row}-{self.number}"

    def read_bytes(self) -> bytes:
        """The encoded picture."""
        # as Arrow has it: `datasets` would decode all images of the row
        rows = open_dataset(self.entry).select_columns([self.column]).with_format("arrow")
        cell = rows[self.row : self.row + 1][self.column][0]
        if hasattr(cell.type, "value_type"):  # a list of images
            cell = cell.values[self.number]
        encoded: bytes = cell["bytes"].as_py()
        return encoded

    def open(self) -> BytesIO:
        """The encoded picture as a file."""
        return BytesIO(self.read_bytes())


class StreamedImage(NamedTuple):
    """An image of a row that is streamed, in memory. As a path it is a name that no file has.

    encoded  the picture's bytes, as its shard has them
    place    of the row, which names the shard
    column   "image" or "images"
    number   of the row's images
    """

    encoded: bytes
    place: str
    column: str
    number: int

    def __fspath__(self) -> str:
        return f"/{self}"

    def __str__(self) -> str:
        return f"{self.place}, {self.column} {self.number}"

    @property
    def name(self) -> str:
        """What it would be called as a file."""
        return str(self)

    def read_bytes(self) -> bytes:
        """The encoded picture."""
        return self.encoded

    def open(self) -> BytesIO:
        """The encoded picture as a file."""
        return BytesIO(self.encoded)


EncodedImage = StoredImage | StreamedImage


def is_dataset_entry(entry: str) -> bool:
    """Whether an entry of the settings names a data set by its form: names of splits have no slash."""
    return entry.startswith(HUB_SCHEME) or entry.endswith(PARQUET_SUFFIX) or "/" in entry or os.sep in entry


def is_dataset(path: Path | str) -> bool:
    """Whether a name is that of a data set: of the hub, a Parquet file, or a folder that `save_to_disk` has
    written."""
    name = str(path)
    if name.startswith(HUB_SCHEME) or is_parquet_file(name):
        return True
    folder, _ = split_folder_entry(name)
    return (folder / STATE_FILE).is_file() or (folder / SPLITS_FILE).is_file()


def is_parquet_file(path: Path | str) -> bool:
    """Whether a name is that of a Parquet file which is there."""
    return str(path).endswith(PARQUET_SUFFIX) and Path(path).is_file()


def split_folder_entry(entry: str) -> tuple[Path, str | None]:
    """FOLDER[:SPLIT] as (folder, split)."""
    folder, colon, split = entry.rpartition(":")
    if not colon or "/" in split or os.sep in split or Path(entry).exists():
        return Path(entry), None
    return Path(folder), split


def format_folder_entry(folder: Path, split: str | None = None) -> str:
    """How a folder is written in the settings, where a name without a slash is that of a split."""
    entry = str(folder) if os.sep in str(folder) else f".{os.sep}{folder}"
    return f"{entry}:{split}" if split else entry


def locate_dataset(entry: Path | str) -> str:
    """Where the names of a data set's images begin: its folder, or a name of its own."""
    name = str(entry)
    if name.startswith(HUB_SCHEME):
        return f"/{name}"
    return os.path.abspath(name)


@lru_cache(maxsize=OPEN_SETS)
def open_dataset(entry: str) -> Any:
    """The `datasets.Dataset` of an entry. UsageError without the package, and for a data set that is not
    there."""
    require_datasets(entry)
    if entry.startswith(HUB_SCHEME):
        return open_hub_set(entry)
    if is_parquet_file(entry):
        return open_parquet(entry)
    return open_folder(entry)


def require_datasets(entry: str) -> None:
    """UsageError without the package that reads an entry."""
    if not find_spec("datasets"):
        raise UsageError(f"{quote(entry)}: needs the package datasets; pip install 'slothkit[datasets]'")


@contextmanager
def hide_progress_bars() -> Iterator[None]:
    """Keep those of `datasets` off the screen."""
    import datasets  # an optional package

    was_on = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


def open_parquet(entry: str) -> Any:
    """The rows of a Parquet file."""
    import datasets

    try:
        with hide_progress_bars():
            return datasets.load_dataset("parquet", data_files=entry, split=DEFAULT_SPLIT)
    # damaged files raise anything
    except Exception as error:
        reason = shorten_reason(error.__cause__ or error)
        raise UsageError(f"{quote(entry)}: cannot be opened ({reason})") from error


def open_folder(entry: str) -> Any:
    """A folder of `save_to_disk`, or one of its splits."""
    import datasets  # a second, and an optional package

    folder, split = split_folder_entry(entry)
    try:
        opened = datasets.load_from_disk(str(folder))
    # damaged files raise anything
    except Exception as error:
        raise UsageError(f"{quote(entry)}: cannot be opened ({shorten_reason(error)})") from error
    if isinstance(opened, datasets.Dataset):
        check_folder_split(entry, None)
        return opened
    check_folder_split(entry, list(opened))
    return opened[split]


def check_folder_split(entry: str, splits: Sequence[str] | None) -> None:
    """UsageError for FOLDER[:SPLIT] without such a split; `splits`: None, the folder is one data set."""
    folder, split = split_folder_entry(entry)
    if splits is None and split is not None:
        whole = quote(format_folder_entry(folder))
        raise UsageError(f"{quote(entry)}: the folder has no splits; write {whole}")
    if splits is not None and split not in splits:
        choices = ", ".join(format_folder_entry(folder, name) for name in splits)
        raise UsageError(f"{quote(entry)}: the folder has several splits; write {choices}")


def open_hub_set(entry: str) -> Any:
    """What `load_dataset` finds; it runs no code of the data set."""
    import datasets

    match = match_hub_entry(entry)
    split = match["split"] or DEFAULT_SPLIT
    try:
        with hide_progress_bars():
            opened = datasets.load_dataset(match["name"], match["config"], revision=match["revision"])
    # no network, no such data set, no permission, in the words of several libraries
    except Exception as error:
        raise UsageError(
            f"{quote(entry)}: cannot be loaded ({shorten_reason(error)}); give a name that load_dataset "
            "takes, or save the data set to disk and give its folder"
        ) from error
    check_split(entry, split, list(opened))
    check_commit(entry, match["revision"], opened[split])
    return opened[split]


def match_hub_entry(entry: str) -> re.Match[str]:
    """The parts of hf:NAME[@REVISION][:CONFIG][:SPLIT]."""
    match = HUB_NAME.fullmatch(entry)
    if match is None:
        raise UsageError(f"{quote(entry)}: expected hf:NAME[@REVISION][:CONFIG][:SPLIT]")
    return match


def check_split(entry: str, split: str, splits: Sequence[Any]) -> None:
    """UsageError for a split that a data set does not have."""
    names = list(map(str, splits))
    if split not in names:
        raise UsageError(
            f"{quote(entry)}: no split '{split}'{suggest(split, names)}; it has {', '.join(names)}"
        )


def check_commit(entry: str, revision: str | None, opened: Any) -> None:
    """UsageError for another commit than the one that was asked for: without a network `load_dataset` takes
    whichever lies in its cache."""
    if revision is None or not COMMIT.fullmatch(revision) or not opened.cache_files:
        return
    cached = Path(opened.cache_files[0]["filename"]).parent.name
    if cached != revision:
        raise UsageError(
            f"{quote(entry)}: the hub cannot be reached, and its cache has commit {quote(cached)}; name that "
            "one, or download the other"
        )


def read_records(path: Path | str) -> list[tuple[int, dict[str, Any]]]:
    """(row, record) of a data set; pictures are neither read nor decoded, `StoredImage`s stand for them."""
    entry = str(path)
    opened = open_dataset(entry)
    records: list[tuple[int, dict[str, Any]]] = []
    rows = opened.with_format("arrow")
    for start in range(0, len(opened), ROWS_AT_ONCE):
        table = rows[start : start + ROWS_AT_ONCE]
        columns: dict[str, list[Any]] = {}
        for name in table.column_names:
            if is_image_feature(opened.features[name]):
                columns[name] = list(list_images(entry, name, start, table[name]))
            else:
                columns[name] = table[name].to_pylist()
        for number in range(len(table)):
            record = {name: values[number] for name, values in columns.items()}
            records.append((start + number, record))
    return records


def is_image_feature(feature: Any) -> bool:
    """Whether a column has images, or lists of them; a Parquet file that `datasets` has not written may have
    their bytes and nothing that says so."""
    import datasets

    inner = getattr(feature, "feature", feature)  # of a list
    if isinstance(inner, dict):
        return inner.keys() == IMAGE_FIELDS
    return isinstance(inner, datasets.Image)


def list_images(entry: str, column: str, start: int, cells: Any) -> Iterator[Any]:
    """What a record has for each cell of an image column (pyarrow, from row `start` on): images in the file,
    names of files beside it, or None."""
    row = start
    for chunk in cells.chunks:
        is_list = hasattr(chunk.type, "value_type")
        structs = chunk.flatten() if is_list else chunk
        # whether there are bytes is known without reading them
        has_bytes = structs.field("bytes").is_valid().to_pylist()
        names = structs.field("path").to_pylist()
        counts = [int(is_there) for is_there in structs.is_valid().to_pylist()]
        if is_list:
            counts = [count or 0 for count in chunk.value_lengths().to_pylist()]
        position = 0
        for count in counts:
            images: list[Any] = []
            for number in range(count):
                stored_image = StoredImage(entry, column, row, number)
                images.append(stored_image if has_bytes[position + number] else names[position + number])
            # a cell without an image takes a place of its own, a list without one does not
            position += count if is_list else 1
            row += 1
            yield images


def describe_files(path: Path | str) -> list[Mapping[str, Any]]:
    """Name, size and time of each Arrow file of a data set, or of its Parquet file, for a key."""
    files = [file["filename"] for file in open_dataset(str(path)).cache_files]
    if is_parquet_file(path):  # whose Arrow files are a cache, which may be cleared
        files = [str(path)]
    descriptions: list[Mapping[str, Any]] = []
    for file in files:
        descriptions.append(describe_file(file))
    return descriptions


def describe_file(path: str) -> dict[str, Any]:
    """Name, size and time of a file, for a key."""
    stat = os.stat(path)
    return {"name": os.path.basename(path), "size": stat.st_size, "time": stat.st_mtime_ns}
