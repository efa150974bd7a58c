"""Measuring code: seconds of steps run in turn, bytes that autograd keeps, floating point operations.

On a shared machine only what runs side by side can be compared: `interleaved` runs all steps once before any
runs twice, and `ratios` compares within a round, so that a slow minute hits all steps alike.
"""
from collections.abc import Callable, Iterable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

Step = Callable[[], object]
Call = Callable[[Tensor], Tensor]


class Spread(NamedTuple):
    """The middle of several measurements, the smallest and the largest."""

    median: float
    low: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(median(values), min(values), max(values))


def settle() -> None:
    """Wait until the accelerator, if there is one, has finished."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each of `rounds` rounds, after one round that is not measured."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            settle()
            start = perf_counter()
            step()
            settle()
            if turn:
                seconds[name].append(perf_counter() - start)
    return seconds


def ratios(seconds: list[float], reference: list[float]) -> Spread:
    """How many times longer than the reference, round by round."""
    return spread(a / b for a, b in zip(seconds, reference, strict=True))


def training_step(call: Call, features: Tensor, weights: Iterable[Tensor] = ()) -> Step:
    """Forward and backward of `call(features)`; gradients of the step before are dropped."""
    leaves = [features, *weights]

    def step() -> None:
        for leaf in leaves:
            leaf.grad = None
        output = call(features)
        output.backward(torch.ones_like(output))

    return step


def kept_bytes(call: Call, features: Tensor, weights: Iterable[Tensor] = ()) -> int:
    """What autograd keeps between forward and backward beyond the features and the weights."""
    known = {leaf.untyped_storage().data_ptr() for leaf in (features, *weights)}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(features)
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in known)


def flops(call: Step) -> int:
    """Floating point operations of a call, a multiply-add counted as two; works on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops()
