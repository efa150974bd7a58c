"""Measuring code: seconds of steps run in turn, shares by part, bytes that autograd keeps, FLOPs.

On a shared machine only what runs side by side can be compared: `interleaved` runs all steps once before any
runs twice, and `ratios` compares within a round, so that a slow minute hits all steps alike.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from connectors.versions import meta_forward

OTHER = "other"
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


def in_turn(steps: Mapping[str, Step], rounds: int, done: Step = lambda: None) -> dict[str, list[Any]]:
    """What each step returns in each of `rounds` rounds, after one round that does not count. `done` is
    called after every step."""
    found: dict[str, list[Any]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            settle()
            result = step()
            if turn:
                found[name].append(result)
            done()
    return found


def seconds_of(step: Step) -> float:
    """How long a step takes, the accelerator's part included."""
    settle()
    start = perf_counter()
    step()
    settle()
    return perf_counter() - start


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each of `rounds` rounds, after one round that is not measured."""
    return in_turn({name: partial(seconds_of, step) for name, step in steps.items()}, rounds)


class Ledger:
    """Within a `with` block: what `read` (a clock, a counter) grows by inside each part of a model, by the
    part's name. A part within another counts as its own alone; `other` is what happens in none.

    parts   the modules of each part. They are seen where they are called, as `module(...)`.
    """

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]], read: Callable[[], float]):
        self.parts, self.read = parts, read
        self.shares: dict[str, float] = {}

    def __enter__(self) -> "Ledger":
        self.shares, self.within = dict.fromkeys([*self.parts, OTHER], 0), [OTHER]
        self.handles = []
        for name, modules in self.parts.items():
            for module in modules:
                self.handles += [
                    module.register_forward_pre_hook(partial(self._begin, name)),
                    module.register_forward_hook(self._end),
                ]
        self.last = self.read()
        return self

    def __exit__(self, *_: object) -> None:
        self._credit()
        for handle in self.handles:
            handle.remove()

    def _begin(self, name: str, *_: object) -> None:
        self._credit()
        self.within.append(name)

    def _end(self, *_: object) -> None:
        self._credit()
        self.within.pop()

    def _credit(self) -> None:
        now = self.read()
        self.shares[self.within[-1]] += now - self.last
        self.last = now


def clock() -> float:
    """Seconds, once the accelerator has finished what it was given."""
    settle()
    return perf_counter()


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
    return sum(flops_by_part(call, {}).values())


def flops_by_part(call: Step, parts: Mapping[str, Sequence[nn.Module]]) -> dict[str, int]:
    """The same by part of the model, what happens in no part as `other`."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), meta_forward():
        with Ledger(parts, counter.get_total_flops) as ledger:
            call()
        return ledger.shares
