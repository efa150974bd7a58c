"""Folders and repositories of the Hugging Face hub, by one word: NAME or OWNER/NAME, and no folder here;
models of open_clip.

torch and transformers are not imported: a name that is nowhere is answered at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressors.errors import UnreachableError, UsageError, shorten_reason

# of a model: weights, settings, a tokenizer in any form; others, such as logs of a training, stay there
MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
PICKLED_FILES = ("*.bin",)  # which released checkpoints of others may have
# of `from_pretrained`, that tell where a repository is
HUB_ARGUMENTS = ("cache_dir", "local_files_only", "token")
OPEN_CLIP_SCHEME = "open_clip:"  # which transformers' ways do not know


def is_open_clip(source: str | Path) -> bool:
    """Whether a source is `open_clip:NAME[:TAG_OR_FILE]`."""
    return str(source).startswith(OPEN_CLIP_SCHEME)


def split_open_clip(source: str) -> tuple[str, str]:
    """Name, and tag or file, which may be empty."""
    name, _, tag = source.removeprefix(OPEN_CLIP_SCHEME).partition(":")
    return name, tag


def is_hub_id(source: str) -> bool:
    """Whether a source can only be a model of the hub: NAME or OWNER/NAME, and no folder here."""
    is_path = source.startswith(("/", ".", "~")) or Path(source).exists()
    return not is_path and source.count("/") <= 1


def select_hub_options(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `from_pretrained`'s arguments that `find_folder` takes as its options."""
    return {name: arguments[name] for name in HUB_ARGUMENTS if name in arguments}


def find_folder(
    source: str | Path,
    revision: str | None = None,
    patterns: tuple[str, ...] = MODEL_FILES,
    setting: str = "revision",
    **options: Any,
) -> Path:
    """The folder (or file) of that name, or of the hub's repository in the cache, downloaded where it is
    missing.

    revision  of a repository: a branch, a tag or a commit
    patterns  of the files that are downloaded
    setting   what the caller's user calls the revision
    options   `cache_dir`, `local_files_only` and `token` of huggingface_hub
    UsageError or UnreachableError for what is neither.
    """
    if not is_hub_id(str(source)):
        if revision is not None:
            raise UsageError(f"{setting}={revision}: {source} is a folder, which has no revisions")
        return Path(source)
    # a fifth of a second that a folder does not have to wait for
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(str(source), revision=revision, allow_patterns=list(patterns), **options)
    except Exception as error:  # of the network, of the cache, of a name that nobody has
        raise UnreachableError(
            f"{source}: no such folder, and not to be had from the hub: {shorten_reason(error)}; give a "
            "folder, or a repository that can be reached or is cached"
        ) from error
    return Path(folder)
