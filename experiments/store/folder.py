"""What lies in a stage's directory, and whether it is whole."""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.store.keys import digest_file

RECORDED_PACKAGES = ("slothkit", "torch", "transformers", "lightning")
DONE_FILE = "done.json"
CONFIG_FILE = "config.yaml"


def lock_file_of(path: Path) -> Path:
    """Held by the process that computes a stage."""
    return path.with_name(f"{path.name}.lock")


def draft_folder_of(path: Path) -> Path:
    """Where a stage is computed."""
    return path.with_name(f"{path.name}.partial")


def list_file_sizes(path: Path) -> Iterator[tuple[str, int]]:
    """Names below `path`, with forward slashes, and sizes of all files, sorted."""
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield file.relative_to(path).as_posix(), file.stat().st_size


def find_damage(path: Path, digests: bool = False) -> str | None:
    """Return what is wrong with a finished stage's directory, None if it is whole.

    Files are compared by name and size, with `digests` by content too.
    """
    try:
        recorded_files = json.loads((path / DONE_FILE).read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return f"no readable {DONE_FILE}"
    for name, (size, digest) in recorded_files.items():
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
