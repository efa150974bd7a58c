"""Models, configurations and tokenizers of others, from a folder or the hub: no code of theirs runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from compressors.errors import UnreachableError, UsageError, shorten_reason
from compressors.reading import check_regular_file
from connectors.hub import is_hub_id

# what transformers reads, whole or in shards
WEIGHT_FILES = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


def load_pretrained(auto: Any, source: str | Path, where: str, advice: str, **kwargs: Any) -> Any:
    """`auto.from_pretrained(source)`. UsageError, one line from `where` to `advice`, for what is not there,
    is damaged, or brings code of its own."""
    refuse_odd_files(Path(source))
    try:
        return auto.from_pretrained(source, trust_remote_code=False, **kwargs)
    except (UnreachableError, MemoryError, torch.OutOfMemoryError):
        raise
    except UsageError as error:  # of a constructor of ours, which knows no folder
        raise UsageError(f"{where}: {error}") from error
    # a damaged file makes any exception; that of tokenizers has no narrower class
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UsageError(
                f"{where}: brings Python code of its own, which is never run here (trust_remote_code is "
                "False); give a model of a type that transformers itself has"
            ) from error
        kind = UnreachableError if is_hub_id(str(source)) else UsageError
        raise kind(f"{where}: cannot be loaded: {shorten_reason(error)}; {advice}") from error


def refuse_odd_files(folder: Path) -> None:
    """UsageError for a folder in which something other than files and folders lies: a library that opens a
    FIFO waits for ever."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.exists() and not path.is_dir():
            check_regular_file(path)


def reset_outputs(config: PreTrainedConfig) -> None:
    """Makes a part's outputs those of its class by default. What its configuration says of them (tuples,
    every hidden state) was meant for its model alone; a composed model reads its parts by name."""
    config.return_dict = True
    config.output_hidden_states = False


def load_model(
    auto: Any,
    source: str | Path,
    where: str,
    advice: str,
    unused: tuple[str, ...] = (),
    **kwargs: Any,
) -> Any:
    """`load_pretrained` of a model. UsageError, too, where weights are missing, but for those under `unused`
    prefixes: transformers would fill them with random numbers."""
    with silence_transformers():  # its report of missing keys is the error below
        model, info = load_pretrained(auto, source, where, advice, output_loading_info=True, **kwargs)
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        raise UsageError(f"{where}: {len(missing)} weights are missing, such as {missing[0]}; {advice}")
    return model


def check_weight_files(source: str | Path, where: str) -> None:
    """UsageError for a model's folder without weights, or with cut files. Only their heads are read."""
    folder = Path(source)
    if not folder.is_dir():
        return  # of the hub, whose files come when they are needed
    paths: list[Path] = []
    for pattern in WEIGHT_FILES:
        paths += folder.glob(pattern)
    if not paths:
        raise UsageError(
            f"{where}: no weights in the folder; it needs model.safetensors, as save_pretrained writes it"
        )
    for path in paths:
        if path.suffix == ".safetensors":
            check_safetensors(path)


def check_safetensors(path: Path) -> None:
    """UsageError for a file whose head does not fit its size."""
    check_regular_file(path)
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path}: a damaged weight file: {shorten_reason(error)}; copy it again") from error


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Its report of keys that do not fit is expected: a tower is cut, a model has parts beside its class."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
