"""Weights that a command of ours has converted, in the user's cache directory: `cache:small/tower`."""

import os
from pathlib import Path

from compressors.errors import UsageError

CACHE_SCHEME = "cache:"
CACHE_COMMANDS = {
    "small": "python -m experiments.backbones.small"
}  # the command that fills a folder of the cache
CACHED_PARTS = ("tower", "llm")


def find_cache_root() -> Path:
    """The cache directory of this user, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "slothkit"


def resolve_cached_source(source: str) -> Path:
    """The folder that `cache:FOLDER/PART` names, or a UsageError that says how it comes to be there."""
    name = source.removeprefix(CACHE_SCHEME)
    known = [f"{folder}/{part}" for folder in CACHE_COMMANDS for part in CACHED_PARTS]
    if name not in known:
        raise UsageError(
            f"{source}: no such weights; there are: {', '.join(CACHE_SCHEME + k for k in known)}"
        )
    path = find_cache_root() / name
    if not (path / "config.json").is_file():
        raise UsageError(f"{name} is not there yet; run: {CACHE_COMMANDS[name.split('/')[0]]}")
    return path
