"""Files of a released FlashSloth checkpoint and of a converted one: reading, remembering, writing at once."""

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressors.errors import UsageError, shorten_reason
from compressors.reading import check_regular_file, read_json_object
from connectors.tiling import Tiling
from llm_adapters.released.layout import DERIVED, Checkpoint, remove_level

CONFIG, MEMORY = "config.json", "released.safetensors"
PROCESSOR = "processor_config.json"
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "mm_projector.bin",  # a stage-1 checkpoint of LLaVA's kind
)
# what torch and safetensors raise for a damaged file
WEIGHT_ERRORS = (
    SafetensorError,
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    KeyError,
)


def read_checkpoint(path: Path) -> Checkpoint:
    """A folder in the released layout, or one of its weight files or indices; config.json beside it."""
    folder = path if path.is_dir() else path.parent
    plain, level = remove_level(read_tensors(path), path)
    return Checkpoint(path, read_config(folder), plain, level)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder, an index or a file."""
    if path.is_dir():
        weight_file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if weight_file is None:
            raise UsageError(f"{path}: no weights in it; looked for {', '.join(WEIGHTS)}")
        path = weight_file
    if path.name.endswith(".index.json"):
        shard_names = read_json_object(path).get("weight_map", {})
        if not isinstance(shard_names, dict) or not all(isinstance(v, str) for v in shard_names.values()):
            raise UsageError(f"{path}: weight_map must name a file for each tensor; the file is damaged")
        shards = sorted(set(shard_names.values()))
        return {key: value for name in shards for key, value in _load_weight_file(path.parent / name).items()}
    return _load_weight_file(path)


def _load_weight_file(path: Path) -> dict[str, Tensor]:
    """One file; its tensors are mapped, not copied, where the format allows."""
    check_regular_file(path)
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            mapped = zipfile.is_zipfile(path)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except WEIGHT_ERRORS as error:
        raise UsageError(f"{path}: cannot be read as weights: {shorten_reason(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UsageError(f"{path}: expected tensors by key, found something else; give a model's weights")
    check_tensors(tensors, path)
    if path.suffix == ".safetensors":
        return tensors
    return keep_own_tensors(tensors)


def check_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """UsageError for a tensor that is no dense one of floating-point numbers."""
    for key, value in tensors.items():
        if value.layout is not torch.strided or value.is_quantized:
            raise UsageError(f"{path}: {key} is sparse or quantised; give a checkpoint of plain tensors")
        # positions and the like, which are derived and left out, are whole numbers
        if not value.is_floating_point() and not key.endswith(DERIVED):
            raise UsageError(f"{path}: {key} is {value.dtype}; give a checkpoint of floating-point weights")


def keep_own_tensors(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with a storage each, as safetensors wants them; a pickle may hold views of a common one."""
    out, seen = {}, set()
    for key, value in found.items():
        storage = value.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != value.nbytes or not value.is_contiguous():
            value = value.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        out[key] = value
    return out


def read_config(folder: Path) -> dict[str, Any]:
    """The values of a folder's config.json; {} if there is none."""
    path = folder / CONFIG
    return read_json_object(path) if path.exists() else {}


def read_processor_tiles(folder: Path) -> int | None:
    """k of the k x k tiles that the processor in a model folder of ours cuts; None where there is none.
    UsageError for tiles by a picture's shape."""
    path = folder / PROCESSOR
    if not path.is_file():
        return None
    settings = read_json_object(path)
    tiling = Tiling(settings.get("tiles", 1), layout=settings.get("layout", "square"))
    if not tiling.fixed:
        raise UsageError(
            f"{path}: layout={tiling.layout}: the released model cuts all pictures alike, "
            "so its layout cannot hold this model"
        )
    return tiling.tiles


def write_origin(folder: Path, checkpoint: Checkpoint, learned: Tensor) -> None:
    """Keep in a converted folder what the way back needs: the released config.json, the key layout and the
    query tokens before the dot's embedding was added."""
    about = {"values": json.dumps(checkpoint.values), "level": json.dumps(checkpoint.level)}
    save_file({"learned": learned.contiguous().clone()}, folder / MEMORY, metadata=about)


def read_origin(folder: Path) -> tuple[dict, bool, Tensor | None]:
    """(config.json's values, level, learned query tokens); ({}, True, None) where nothing was kept."""
    if not (folder / MEMORY).is_file():
        return {}, True, None
    try:
        with safe_open(folder / MEMORY, "pt") as file:
            about = file.metadata()
            return json.loads(about["values"]), json.loads(about["level"]), file.get_tensor("learned")
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{folder / MEMORY}: cannot be read: {shorten_reason(error)}; remove it to do without"
        ) from error


def refuse_existing(out: Path) -> None:
    """UsageError unless `out` is new or an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already; name a new folder")


@contextmanager
def open_draft(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, and goes away if there is an error."""
    out = out.absolute()
    folder = out.with_name(f".{out.name}.{os.getpid()}.draft")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
