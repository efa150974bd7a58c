"""The checkpoint that a killed training goes on from: read as tensors and plain containers, never as code.

OUT/finetune/KEY.partial/checkpoints/last.ckpt     a file; with DeepSpeed a folder, `latest` and `checkpoint/`
"""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from compressors.errors import shorten_reason
from experiments.runtime.progress import Reporter
from experiments.stages.finite import find_not_finite
from experiments.store.folder import CHECKPOINTS_FOLDER

CHECKPOINT_FILE = "last.ckpt"
DEEPSPEED_TAG = "checkpoint"  # what Lightning calls the one that DeepSpeed writes
CHECKPOINT_PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step")
# DeepSpeed pickles these beside its tensors, and reads all of it as code: nothing else may be in there.
DEEPSPEED_CLASSES = {
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
}


def locate_checkpoint(out: Path) -> Path:
    """Where a stage's checkpoint lies."""
    return out / CHECKPOINTS_FOLDER / CHECKPOINT_FILE


def remove_bad_checkpoint(
    out: Path, strategy: str, report: Reporter, names: Collection[str] = (), accumulate: int = 1
) -> bool:
    """Whether there is a checkpoint to go on from. One that is damaged, or lacks one of `names`, or may hold
    code, or was saved by a diverged run, or between the `accumulate` batches of a step, is removed, and a
    warning says so: the stage begins again."""
    path = locate_checkpoint(out)
    if not path.exists():
        return False
    if strategy == "deepspeed":
        fault = find_deepspeed_fault(path)
    else:
        fault = find_checkpoint_fault(path, names, accumulate)
    if fault is None:
        return True
    report.write_warning(f"{path}: {fault}; it is removed, and the stage begins again")
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return False


def find_checkpoint_fault(path: Path, names: Collection[str] = (), accumulate: int = 1) -> str | None:
    """Why no training of the tensors `names` can go on from a checkpoint; None if one can."""
    if not path.is_file():  # a pipe would be waited for
        return "is not a file"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes raise anything
        return f"cannot be read as tensors alone ({type(error).__name__}: {shorten_reason(error)})"
    return find_content_fault(checkpoint, names, accumulate)


def find_content_fault(checkpoint: Any, names: Collection[str], accumulate: int) -> str | None:
    """What is wrong with a checkpoint that was read."""
    if not isinstance(checkpoint, dict) or not all(part in checkpoint for part in CHECKPOINT_PARTS):
        return "is no checkpoint of a training"
    weights = checkpoint["state_dict"]
    if not isinstance(weights, dict) or not all(map(torch.is_tensor, weights.values())):
        return "is no checkpoint of a training"
    missing = sorted(name for name in names if name not in weights)
    if missing:
        return f"lacks {missing[0]}"
    name = find_not_finite(weights, weights)
    if name is not None:
        return f"{name} is not finite in it, the run that wrote it has diverged"
    # an older version saved some so, without the gradients of these batches
    if count_read_batches(checkpoint["loops"]) % accumulate:
        return "was saved in the middle of a step"
    return None


def count_read_batches(loops: Any) -> int:
    """The batches that Lightning's loops say that they have read; 0 where they say nothing."""
    try:
        return int(loops["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"])
    except (KeyError, TypeError, ValueError):
        return 0


def find_deepspeed_fault(folder: Path) -> str | None:
    """The same of a folder that DeepSpeed will read. No object in it is made to find out."""
    latest = folder / "latest"
    # DeepSpeed writes it last, and reads whatever folder it names
    if not latest.is_file() or latest.read_text(errors="replace") != DEEPSPEED_TAG:
        return "is no whole checkpoint of DeepSpeed"
    for path in sorted((folder / DEEPSPEED_TAG).rglob("*")):
        if path.is_dir():
            continue
        try:
            unsafe_names = set(get_unsafe_globals_in_checkpoint(str(path))) - DEEPSPEED_CLASSES
        except Exception as error:  # damaged bytes raise anything
            return f"{path.name} in it cannot be read ({shorten_reason(error)})"
        if unsafe_names:
            return f"{path.name} in it asks for code ({min(unsafe_names)})"
    return None
