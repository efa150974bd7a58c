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
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressors.errors import UsageError, quote, shorten_reason
from compressors.registry import suggest
from experiments.runtime.memory import remember_for_request

HUB_SCHEME = "hf:"
PARQUET_SUFFIX = ".parquet"
DEFAULT_SPLIT = "train"
HUB_NAME = re.compile(
    r"hf:(?P<name>[^@:]+)(@(?P<revision>[^@:]+))?(:(?P<config>[^@:]+)(?=:))?(:(?P<split>[\w.-]+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")  # how the cache calls a version of a data set on the hub
SPLITS_FILE = "dataset_dict.json"  # in a folder of several splits
STATE_FILE = "state.json"  # in the folder of a split
OPEN_SETS = 16  # how many are kept open in a process


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
    entry = str(folder)
    if os.sep not in entry:
        entry = f".{os.sep}{entry}"
    if split:
        return f"{entry}:{split}"
    return entry


def locate_dataset(entry: Path | str) -> str:
    """Where the names of a data set's images begin: its folder, or a name of its own."""
    name = str(entry)
    if name.startswith(HUB_SCHEME):
        return f"/{name}"
    return os.path.abspath(name)


@remember_for_request(most=OPEN_SETS)
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


def describe_files(path: Path | str) -> list[Mapping[str, Any]]:
    """Name, size and time of each Arrow file of a data set, or of its Parquet file, for a key."""
    files = [file["filename"] for file in open_dataset(str(path)).cache_files]
    if is_parquet_file(path):  # whose Arrow files are a cache, which may be cleared
        files = [str(path)]
    return [describe_file(file) for file in files]


def describe_file(path: str) -> dict[str, Any]:
    """Name, size and time of a file, for a key."""
    stat = os.stat(path)
    return {"name": os.path.basename(path), "size": stat.st_size, "time": stat.st_mtime_ns}
