"""What the two pretraining commands share: schedule, bar, saving that never leaves half a model behind."""

import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel
from transformers.utils import logging

from compressors.setting_fields import setting

Batch = TypeVar("Batch")


@dataclass(frozen=True)
class PretrainingPlan:
    """The settings of both commands. A subclass says what a step is and how many there are."""

    to: Path = setting(None, "folder to write and to overwrite", required=True, was=("out",))
    steps: int = setting(1, "steps to train for", low=1)
    lr: float = setting(1.5e-3, "highest learning rate", above=0)
    seed: int = setting(0, "of weights, data and noise")
    state: Path | None = setting(None, "file to resume from and to save the training state to")
    every: int = setting(200, "steps between two savings", low=1)


def seed_step(seed: int, step: int) -> None:
    """A random stream of its own for every step, so that a resumed run repeats an uninterrupted one."""
    torch.manual_seed(seed * 1_000_003 + step)


def list_parameters(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """All parameters of several modules."""
    return [parameter for module in modules for parameter in module.parameters()]


def build_optimizer(modules: Iterable[nn.Module], lr: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, vectors (biases, norms) do not."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for parameter in list_parameters(modules):
        group = matrices if parameter.ndim > 1 else vectors
        group.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def set_learning_rate(
    optimizer: torch.optim.Optimizer, lr: float, step: int, steps: int, warmup: int = 200
) -> None:
    """Linear warm-up, then a cosine down to a twentieth."""
    cosine = 0.525 + 0.475 * math.cos(math.pi * step / steps)
    for group in optimizer.param_groups:
        group["lr"] = lr * min((step + 1) / warmup, cosine)


def step_optimizer(loss: Tensor, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """One optimizer step with the gradient's norm clipped to one."""
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(list_parameters(modules), 1.0)
    optimizer.step()


def save_model(
    model: PreTrainedModel, out: Path, extras: dict[str, str], also: Callable[[Path], None] | None = None
) -> None:
    """Write config and half precision weights, with text files (and what `also` saves) beside them.

    `extras` are the text files by name. `out` changes in one rename.
    """
    staging = out.parent / f".{out.name}.{os.getpid()}.part"
    staging.mkdir(parents=True)
    logging.disable_progress_bar()
    weights = model.state_dict()
    # Tied weights are saved once, under the first of their names: safetensors refuses shared memory.
    name_of_memory = {weight.data_ptr(): name for name, weight in reversed(weights.items())}
    half_weights = {}
    for name in name_of_memory.values():
        half_weights[name] = weights[name].detach().half()
    model.save_pretrained(staging, state_dict=half_weights)
    (staging / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    for name, text in extras.items():
        (staging / name).write_text(text, encoding="utf-8")
    if also is not None:
        also(staging)
    previous = staging.with_suffix(".old")
    if out.exists():
        out.rename(previous)
    staging.rename(out)
    shutil.rmtree(previous, ignore_errors=True)


def save_state(
    plan: PretrainingPlan, step: int, optimizer: torch.optim.Optimizer, modules: Sequence[nn.Module]
) -> None:
    """Save what resuming after `step` steps needs; nothing when the plan names no file."""
    if plan.state is None:
        return
    state = {
        "step": step,
        "optimizer": optimizer.state_dict(),
        "modules": [module.state_dict() for module in modules],
    }
    # a run killed while it saves keeps the state before
    part = plan.state.with_suffix(".part")
    torch.save(state, part)
    part.replace(plan.state)


def load_state(plan: PretrainingPlan, optimizer: torch.optim.Optimizer, modules: Sequence[nn.Module]) -> int:
    """Restore what `save_state` wrote and return the step to go on from, 0 without a file."""
    if plan.state is None or not plan.state.exists():
        return 0
    state: dict[str, Any] = torch.load(plan.state, weights_only=True)
    optimizer.load_state_dict(state["optimizer"])
    for module, weights in zip(modules, state["modules"], strict=True):
        module.load_state_dict(weights)
    return state["step"]


class BatchDataset(Dataset[Batch]):
    """The batch of every step, made by `make(step)`: a resumed run sees what an uninterrupted one would."""

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self.make = make

    def __getitem__(self, step: int) -> Batch:
        return self.make(step)


def load_batches(make: Callable[[int], Batch], start: int, steps: int) -> Iterator[Batch]:
    """The batches of steps `start` to `steps`, made ahead in one worker process."""
    # batch_size None: what `make` returns is a batch already
    loader = DataLoader(
        BatchDataset(make),
        batch_size=None,
        sampler=range(start, steps),
        num_workers=1,
        prefetch_factor=8,
    )
    # DataLoader is typed by its dataset but iterates over Any
    return cast("Iterator[Batch]", iter(loader))


def make_steps_bar(start: int, steps: int) -> tuple[Progress, Callable[[str], None]]:
    """A progress bar on stderr, and the function to call with a short text after every step."""
    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
    task = progress.add_task("", total=steps, completed=start)

    def advance(text: str) -> None:
        progress.update(task, advance=1, description=text)

    return progress, advance
