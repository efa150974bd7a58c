"""Conditions of a measurement: what is asked of every model and how often, on which device, in which type.

A result states them beside its figures.
"""

import platform
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import transformers

from compressors.errors import UsageError
from experiments.config.devices import pick_device
from experiments.config.schema_sections import TrainerSettings
from experiments.efficiency.subject import CostSubject
from experiments.models import build
from experiments.models.random_model import TEXT_TOKENS
from experiments.runtime.processor import read_memory_bytes, read_processor_name

PictureSize = tuple[int, int]  # width and height in pixels
WEIGHT_MARGIN = 1.1  # of the weights' bytes: what else a process needs while it fills them


class PictureCase(NamedTuple):
    """What a model is shown at once: `batch` rows of `images` pictures of one size."""

    size: PictureSize
    batch: int
    images: int


@dataclass(frozen=True)
class MeasuringPlan:
    """All of it, for models that answer.

    pictures    sizes
    batches     rows at once
    images      pictures of a row
    text        text tokens of a row
    tokens      tokens of an answer
    rounds      measured rounds, after one that does not count
    static      a cache of fixed size, with which transformers compiles the decoding step on a GPU
    compiled    torch.compile of the layers of towers and LLMs
    """

    pictures: tuple[PictureSize, ...]
    batches: tuple[int, ...] = (1,)
    images: tuple[int, ...] = (1,)
    text: int = TEXT_TOKENS
    tokens: int = 33
    rounds: int = 7
    static: bool = False
    compiled: bool = False

    def list_cases(self) -> list[PictureCase]:
        """Every size with every batch and every number of images."""
        cases = []
        for size in self.pictures:
            for batch in self.batches:
                for images in self.images:
                    cases.append(PictureCase(size, batch, images))
        return cases


@dataclass(frozen=True)
class Machine:
    """Where models run, and the type of their weights. `threads`: of the CPU; None: torch's choice."""

    device: torch.device
    dtype: torch.dtype
    threads: int | None = None

    @property
    def dtype_name(self) -> str:
        """As it is typed: bfloat16."""
        return str(self.dtype).removeprefix("torch.")


def settle_machine(
    device: str | None = None, dtype: str | None = None, threads: int | None = None, published: bool = False
) -> Machine:
    """The machine that is asked for; None stands for what suits: a GPU where there is one, bfloat16 there and
    for `published` models (Table 1), else float32. Sets torch's threads. UsageError for no such device."""
    build.silence_libraries()
    if threads:
        torch.set_num_threads(threads)
    place = parse_device(device)
    if dtype is None:
        suits_bfloat16 = place.type == "cuda" or published
        dtype = "bfloat16" if suits_bfloat16 else "float32"
    return Machine(place, getattr(torch, dtype), threads)


def describe_conditions(machine: Machine, plan: MeasuringPlan) -> dict[str, Any]:
    """Where and how, a part of every result."""
    device = machine.device
    if device.type == "cuda":
        device_name = torch.cuda.get_device_name(device)
        cuda_version = torch.version.cuda
    else:
        device_name = read_processor_name()
        cuda_version = None
    return {
        "device": str(device),
        "device_name": device_name,
        "dtype": machine.dtype_name,
        "threads": torch.get_num_threads(),
        "text_tokens": plan.text,
        "new_tokens": plan.tokens,
        "rounds": plan.rounds,
        "static_cache": plan.static,
        "compiled": plan.compiled,
        "torch": torch.__version__,
        "cuda": cuda_version,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def parse_device(name: str | None) -> torch.device:
    """The device asked for, or a UsageError."""
    if name is None:
        return pick_device(TrainerSettings())
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if name != "cpu" and (match is None or int(match[1] or 0) >= torch.cuda.device_count()):
        raise UsageError(f"device={name}: expected cpu, or cuda where there is a GPU")
    return torch.device(name)


def check_weights_fit(subject: CostSubject, machine: Machine) -> None:
    """UsageError for what the memory cannot hold. A GPU tells by itself; a process that asks for more than a
    machine has is killed, and others with it."""
    if machine.device.type != "cpu":
        return
    memory = read_memory_bytes()
    # the model is on the meta device, perhaps of another type than it will have
    needed = subject.model.num_parameters() * machine.dtype.itemsize
    if memory and WEIGHT_MARGIN * needed > memory:
        raise UsageError(
            f"{subject.label}: {needed / 2**30:.1f} GiB of weights do not fit into "
            f"{memory / 2**30:.1f} GiB; take a smaller dtype=, or a GPU"
        )
