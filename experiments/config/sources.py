"""Weights that a command of ours has converted, in the user's cache directory: `cache:small/tower`."""

import os
from pathlib import Path

from compressors.errors import UsageError

SCHEME = "cache:"
MAKERS = {"small": "python -m experiments.backbones.small"}  # the command that fills a folder of the cache
PARTS = ("tower", "llm")


def root() -> Path:
    """The cache directory of this user, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "slothkit"


def resolve(source: str) -> Path:
    """The folder that `cache:FOLDER/PART` names, or a UsageError that says how it comes to be there."""
    name = source.removeprefix(SCHEME)
    known = [f"{folder}/{part}" for folder in MAKERS for part in PARTS]
    if name not in known:
        raise UsageError(f"{source}: no such weights; there are: {', '.join(SCHEME + k for k in known)}")
    path = root() / name
    if not (path / "config.json").is_file():
        raise UsageError(f"{name} is not there yet; run: {MAKERS[name.split('/')[0]]}")
    return path
