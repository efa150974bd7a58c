"""Where a measurement runs: device, type, threads, versions, and whether a model fits."""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import torch
import transformers

from compressors.errors import UsageError
from experiments.efficiency.subject import CostSubject
from experiments.models import build
from experiments.models.random_model import TEXT_TOKENS


def settle_machine(given: argparse.Namespace) -> dict[str, Any]:
    """Where and how, a part of every result; settles device, type and threads."""
    build.silence_libraries()
    if given.threads:
        torch.set_num_threads(given.threads)
    device = parse_device(given.device)
    cuda = device.type == "cuda"
    given.device = str(device)
    given.dtype = given.dtype or ("bfloat16" if cuda or given.table1 else "float32")
    return {
        "device": given.device,
        "device_name": torch.cuda.get_device_name(device) if cuda else read_processor_name(),
        "dtype": given.dtype,
        "threads": torch.get_num_threads(),
        "text_tokens": given.text or TEXT_TOKENS,
        "new_tokens": given.tokens,
        "rounds": given.rounds,
        "static_cache": given.static,
        "torch": torch.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def parse_device(name: str | None) -> torch.device:
    """The device asked for, or a UsageError."""
    if name is None:
        return build.pick_device("auto")
    if name != "cpu" and not (name.split(":")[0] == "cuda" and torch.cuda.is_available()):
        raise UsageError(f"--device {name}: expected cpu, or cuda where there is a GPU")
    return torch.device(name)


def read_processor_name() -> str:
    """The CPU's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def check_weights_fit(subject: CostSubject, given: argparse.Namespace) -> None:
    """UsageError for what the memory cannot hold. A GPU tells by itself; a process that asks for more than a
    machine has is killed, and others with it."""
    needed = sum(p.numel() for p in subject.model.parameters()) * getattr(torch, given.dtype).itemsize
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    there = pages * os.sysconf("SC_PAGE_SIZE") if pages else 2 * needed
    if given.device == "cpu" and 1.1 * needed > there:
        raise UsageError(
            f"{subject.label}: {needed / 2**30:.1f} GiB of weights do not fit into "
            f"{there / 2**30:.1f} GiB; take a smaller --dtype, or a GPU"
        )
