"""What the two pretraining commands share: schedule, bar, saving that never leaves half a model behind."""

import argparse
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging


@dataclass(frozen=True)
class Plan:
    """Where a pretraining run writes to, how long it is, and the file it resumes from (if any)."""

    out: Path
    steps: int
    lr: float
    seed: int = 0
    state: Path | None = None
    every: int = 200  # steps between two savings

    @classmethod
    def from_command(
        cls, arguments: list[str] | None, description: str | None, steps: int, lr: float
    ) -> "Plan":
        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("--out", type=Path, required=True, help="folder to write and to overwrite")
        parser.add_argument("--steps", type=int, default=steps)
        parser.add_argument("--lr", type=float, default=lr)
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument(
            "--state", type=Path, help="file to resume from and to save the training state to"
        )
        parser.add_argument("--every", type=int, default=cls.every, help="steps between two savings")
        return cls(**vars(parser.parse_args(arguments)))


def seed_step(seed: int, step: int) -> None:
    """A random stream of its own for every step, so that a resumed run repeats an uninterrupted one."""
    torch.manual_seed(seed * 1_000_003 + step)


def build_optimizer(modules: Iterable[nn.Module], lr: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (biases, norms) do not."""
    parameters = [p for module in modules for p in module.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int, warmup: int = 200
) -> None:
    """Linear warm-up, then a cosine down to a twentieth."""
    cosine = 0.525 + 0.475 * math.cos(math.pi * step / steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * min((step + 1) / warmup, cosine)


def step_optimizer(
    loss: torch.Tensor, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer
) -> None:
    """One optimizer step with the gradient's norm clipped to one."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], 1.0)
    optimizer.step()


def save_model(
    model: nn.Module, out: Path, extras: dict[str, str], also: Callable[[Path], None] | None = None
) -> None:
    """Writes config and half precision weights, with text files (and what `also` saves) beside them.

    `out` changes in one rename.
    """
    staging = out.parent / f".{out.name}.{os.getpid()}.part"
    staging.mkdir(parents=True)
    logging.disable_progress_bar()
    unique = {value.data_ptr(): name for name, value in reversed(model.state_dict().items())}  # ties once
    half = {name: model.state_dict()[name].detach().half() for name in unique.values()}
    model.save_pretrained(staging, state_dict=half)
    (staging / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    for name, text in extras.items():
        (staging / name).write_text(text, encoding="utf-8")
    if also is not None:
        also(staging)
    replace_folder(staging, out)


def replace_folder(new: Path, out: Path) -> None:
    """Puts the folder `new` in the place of `out`."""
    old = new.with_suffix(".old")
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def save_state(plan: Plan, step: int, optimizer: torch.optim.Optimizer, modules: list[nn.Module]) -> None:
    """What resuming after `step` steps needs; nothing when the plan names no file."""
    if plan.state is None:
        return
    state = {"step": step, "optimizer": optimizer.state_dict(), "modules": [m.state_dict() for m in modules]}
    part = plan.state.with_suffix(".part")
    torch.save(state, part)
    part.replace(plan.state)


def load_state(plan: Plan, optimizer: torch.optim.Optimizer, modules: list[nn.Module]) -> int:
    """Restores what `save_state` wrote and returns the step to go on from, 0 without a file."""
    if plan.state is None or not plan.state.exists():
        return 0
    state: dict[str, Any] = torch.load(plan.state, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    for module, weights in zip(modules, state["modules"], strict=True):
        module.load_state_dict(weights)
    return state["step"]


class BatchDataset(torch.utils.data.Dataset):
    """The batch of every step, made by `make(step)`: a resumed run sees what an uninterrupted one would."""

    def __init__(self, make) -> None:
        self.make = make

    def __getitem__(self, step: int):
        return self.make(step)


def load_batches(make, start: int, steps: int) -> Iterator:
    """Batches `start` to `steps`, made ahead in one worker process."""
    loader = torch.utils.data.DataLoader(
        BatchDataset(make), batch_size=None, sampler=range(start, steps), num_workers=1, prefetch_factor=8
    )
    return iter(loader)


def make_steps_bar(start: int, steps: int):
    """A progress bar on stderr, and the function to call with a short text after every step."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task("", total=steps, completed=start)
    return progress, lambda text: progress.update(task, advance=1, description=text)
