"""Where cells run and how many at once. Nothing of it is in a stage's key: launching never changes what a
result is called; what it may change is the last bits of one (see `threads`)."""

import os
import shutil
from dataclasses import dataclass, field
from typing import Literal

from compressors.command_line import check_bounds, collect_settings, setting
from compressors.errors import UsageError
from compressors.registry import conform, suggest
from experiments.config.overrides import parse_value

SLURM_PREFIX = "launch.slurm."


@dataclass(frozen=True)
class LaunchOptions:
    """The options; on the command line `where` is `launch`, the others are `launch.NAME`."""

    where: str = setting(
        "local", "processes of this machine, or Slurm jobs through submitit", choices=("local", "slurm")
    )
    workers: int | Literal["auto"] = setting(
        1, "cells at once; 1: in this process; auto: one a GPU, else one a core", low=1
    )
    threads: int | None = setting(
        None, "of a worker; null: 1 on the CPU. The last bits of a result depend on it", low=1
    )
    slurm: dict[str, object] = field(default_factory=dict)  # submitit's parameters, as launch.slurm.KEY

    @property
    def in_process(self) -> bool:
        """Whether cells run one after another in the command's own process."""
        return self.where == "local" and self.workers == 1 and self.threads is None


def name_launch_option(name: str) -> str:
    """What an option is called on the command line."""
    return "launch" if name == "where" else f"launch.{name}"


def take_launch_options(axes: dict[str, list[str]]) -> LaunchOptions:
    """The launch options, taken out of the axes."""
    known = {name_launch_option(name): (name, each) for name, each in collect_settings(LaunchOptions).items()}
    given: dict[str, object] = {}
    slurm: dict[str, object] = {}
    for path in [p for p in axes if p.partition(".")[0] == "launch"]:
        values = axes.pop(path)
        if len(values) > 1 and not path.startswith(SLURM_PREFIX):
            raise UsageError(f"{path}={','.join(values)}: takes one value")
        text = ",".join(values)
        if path.startswith(SLURM_PREFIX) and path != SLURM_PREFIX:
            slurm[path.removeprefix(SLURM_PREFIX)] = text if "," in text else parse_value(text, path)
        elif path not in known:
            raise UsageError(f"unknown setting '{path}'{suggest(path, [*known, f'{SLURM_PREFIX}KEY'])}")
        else:
            name, each = known[path]
            if text == "auto" and name == "workers":
                value = text
            else:
                hint = int if name == "workers" else each.hint
                value = text if hint is str else conform(parse_value(text, path), hint, path)
                check_bounds(path, value, each.rules)
            given[name] = value
    found = LaunchOptions(**given, slurm=slurm)
    if slurm and found.where != "slurm":
        raise UsageError(f"{SLURM_PREFIX}{min(slurm)}={slurm[min(slurm)]}: needs launch=slurm")
    if found.where == "slurm" and found.workers == "auto":
        raise UsageError("launch.workers=auto: with launch=slurm say how many jobs at once, launch.workers=8")
    return found


def list_gpus(wanted: bool = True) -> list[str]:
    """The GPUs that workers share out, as CUDA_VISIBLE_DEVICES names them. Imports torch only where there may
    be one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not wanted or visible == "" or shutil.which("nvidia-smi") is None:
        return []
    import torch

    count = torch.cuda.device_count()
    return (visible.split(",") if visible else [str(i) for i in range(count)])[:count]


def count_cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
