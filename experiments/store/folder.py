"""What lies in a stage's directory, and whether it is whole."""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compressors.errors import UsageError
from compressors.reading import read_json_object
from compressors.registry import conform
from experiments.config.schema import Config
from experiments.store.keys import digest_file

RECORDED_PACKAGES = ("slothkit", "torch", "transformers", "lightning")
DONE_FILE = "done.json"
# what a killed stage goes on from; others of its files are written anew by every run
PROGRESS_FILE = "finished"  # of features: how many images
CHECKPOINTS_FOLDER = "checkpoints"  # of a training
NOTE_TYPES = {  # what every note has
    "key": str,
    "seconds": float,
    "finished": str,
    "versions": dict[str, str],
    "files": dict[str, tuple[int, str]],  # size and digest by name
}


def lock_file_of(path: Path) -> Path:
    """Held by the process that computes a stage."""
    return path.with_name(f"{path.name}.lock")


def draft_folder_of(path: Path) -> Path:
    """Where a stage is computed."""
    return path.with_name(f"{path.name}.partial")


def set_aside_folder_of(path: Path) -> Path:
    """Where a run keeps what it could not go on from, while it starts over."""
    return path.with_name(f"{path.name}.left.partial")


def find_progress_time(draft: Path) -> int:
    """When a stage last wrote down how far it has come, in nanoseconds; 0 where it has not."""
    times = [0]
    for path in (draft / PROGRESS_FILE, *(draft / CHECKPOINTS_FOLDER).rglob("*")):
        with suppress(FileNotFoundError):  # there is none, or it has just been replaced
            times.append(path.stat().st_mtime_ns)
    return max(times)


def list_file_sizes(path: Path) -> Iterator[tuple[str, int]]:
    """Names below `path`, with forward slashes, and sizes of all files, sorted."""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file.stat().st_size


def read_done_note(path: Path) -> dict[str, Any]:
    """Read what was noted when the stage in a directory finished; UsageError if that is not whole."""
    note = read_json_object(path / DONE_FILE)
    for name, hint in NOTE_TYPES.items():
        note[name] = conform(note.get(name), hint, f"{path / DONE_FILE}: {name}")
    if not math.isfinite(note["seconds"]):
        raise UsageError(f"{path / DONE_FILE}: seconds={note['seconds']}: must be a finite number")
    return note


def find_damage(path: Path, digests: bool = False) -> str | None:
    """Return what is wrong with a finished stage's directory, None if it is whole.

    Files are compared by name and size, with `digests` by content too.
    """
    try:
        note = read_done_note(path)
    except UsageError:
        return f"no readable {DONE_FILE}"
    if not note["key"].startswith(path.stem):  # the stem: without .partial
        return f"{DONE_FILE} is of another stage, {note['key'][:16]}"
    for name, (size, digest) in note["files"].items():
        file = path / name
        if not file.is_file():
            return f"no {name}"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if digests and digest_file(file) != digest:
            return f"the content of {name} has changed"
    return None


def read_package_versions() -> dict[str, str]:
    """Versions of what a result was computed with."""
    versions = {}
    for package in RECORDED_PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def convert_tuples(value: Any) -> Any:
    """Tuples as lists at any depth: YAML has a tag of its own for tuples, which other readers refuse."""
    if isinstance(value, Mapping):
        return {key: convert_tuples(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [convert_tuples(item) for item in value]
    return value


def list_settings(config: Config) -> dict[str, Any]:
    """All settings of a cell, by section, in the containers that YAML has."""
    settings: dict[str, Any] = convert_tuples(asdict(config))
    del settings["curves"]  # of a stage that runs, and no setting
    return settings
