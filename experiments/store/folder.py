"""What lies in a stage's directory, and whether it is whole."""

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from experiments.store.keys import file_digest

PACKAGES = ("slothkit", "torch", "transformers", "lightning")
DONE, CONFIG = "done.json", "config.yaml"


def lock_of(path: Path) -> Path:
    """Held by the process that computes a stage."""
    return path.with_name(f"{path.name}.lock")


def partial(path: Path) -> Path:
    """Where a stage is computed."""
    return path.with_name(f"{path.name}.partial")


def listing(path: Path) -> Iterator[tuple[str, int]]:
    """Names below `path` and sizes of all files, sorted."""
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        yield file.relative_to(path).as_posix(), file.stat().st_size


def damage(path: Path, digests: bool = False) -> str | None:
    """What is wrong with a finished stage's directory; None if it is whole."""
    try:
        files = json.loads((path / DONE).read_text(encoding="utf-8"))["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return f"no readable {DONE}"
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file():
            return f"no {name}"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if digests and file_digest(file) != digest:
            return f"the content of {name} has changed"
    return None


def versions() -> dict[str, str]:
    """Versions of what a result was computed with."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def plain(value: Any) -> Any:
    """Tuples as lists, for YAML."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value
