"""Where weights come from: assets of this package, the user's cache directory, or transformers' own ways.

asset:tiny/tower     a folder of experiments/assets
cache:small/tower    a folder that a command of ours has written into the user's cache directory
"""

import os
from pathlib import Path

from compressors.errors import UsageError, shorten

ASSET_SCHEME = "asset:"
ASSET_FOLDER = Path(__file__).parents[1] / "assets"
CACHE_SCHEME = "cache:"
# the command that fills a folder of the cache
CACHE_COMMANDS = {"small": "python -m experiments.backbones.small"}
CACHED_PARTS = ("tower", "llm")


def resolve_source(source: str) -> str:
    """A tower or LLM source as `from_pretrained` takes it: a folder for `asset:` and `cache:`, else as it is.
    UsageError for weights that are not there."""
    if source.startswith(CACHE_SCHEME):
        return str(resolve_cached_source(source))
    if source.startswith(ASSET_SCHEME):
        return str(resolve_asset(source))
    return source


def resolve_asset(source: str) -> Path:
    """The folder that `asset:NAME` names, or a UsageError that lists the assets."""
    folders: dict[str, Path] = {}
    for path in sorted(ASSET_FOLDER.glob("*/*/config.json")):
        folders[f"{ASSET_SCHEME}{path.parent.relative_to(ASSET_FOLDER).as_posix()}"] = path.parent
    # by their names alone: no path leads out of the assets
    if source not in folders:
        raise UsageError(f"{shorten(source)}: no such asset; there are: {', '.join(folders) or 'none'}")
    return folders[source]


def resolve_cached_source(source: str) -> Path:
    """The folder that `cache:FOLDER/PART` names, or a UsageError that says how it comes to be there."""
    name = source.removeprefix(CACHE_SCHEME)
    choices: list[str] = []
    for folder in CACHE_COMMANDS:
        choices += [f"{CACHE_SCHEME}{folder}/{part}" for part in CACHED_PARTS]
    if source not in choices:
        raise UsageError(f"{source}: no such weights; there are: {', '.join(choices)}")
    path = find_cache_root() / name
    if not (path / "config.json").is_file():
        command = CACHE_COMMANDS[name.partition("/")[0]]
        raise UsageError(f"{name} is not there yet; run: {command}")
    return path


def find_cache_root() -> Path:
    """The cache directory of this user, as the XDG base directory specification has it."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the specification has relative paths ignored
        return Path(base) / "slothkit"
    return Path.home() / ".cache" / "slothkit"
