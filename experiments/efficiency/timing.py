"""Measuring code: seconds of steps run in turn, shares by part, bytes that autograd keeps, FLOPs.

On a shared machine only what runs side by side can be compared: `time_interleaved` runs all steps once before
any runs twice, and `compare_rounds` compares within a round, so that a slow minute hits all steps alike.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, batched_mm_experts_forward

from connectors.versions import allow_meta_forward

OTHER_PART = "other"
StepFunction = Callable[[], object]
TensorFunction = Callable[[Tensor], Tensor]


class Spread(NamedTuple):
    """The middle of several measurements, the smallest and the largest."""

    median: float
    low: float
    high: float


def find_spread(values: Iterable[float]) -> Spread:
    """The spread of at least one value."""
    measured = list(values)
    return Spread(median(measured), min(measured), max(measured))


def wait_for_accelerator() -> None:
    """Wait until the accelerator, if there is one, has finished."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def run_in_turn(
    steps: Mapping[str, Callable[[], Any]], rounds: int, done: StepFunction = lambda: None
) -> dict[str, list[Any]]:
    """What each step returns in each of `rounds` rounds, after one round that does not count. `done` is
    called after every step."""
    results: dict[str, list[Any]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            wait_for_accelerator()  # for what the step before has left to do
            result = step()
            if turn > 0:
                results[name].append(result)
            done()
    return results


def time_step(step: StepFunction) -> float:
    """How many seconds a step takes, the accelerator's part included."""
    wait_for_accelerator()
    start = perf_counter()
    step()
    # a GPU's work has only been queued when the step returns
    wait_for_accelerator()
    return perf_counter() - start


def time_interleaved(steps: Mapping[str, StepFunction], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each of `rounds` rounds, after one round that is not measured."""
    return run_in_turn({name: partial(time_step, step) for name, step in steps.items()}, rounds)


class PartMethod(NamedTuple):
    """A method of a module, by its name."""

    module: nn.Module
    name: str


PartMethods = Mapping[str, Sequence[PartMethod]]  # of each part
NO_METHODS: PartMethods = {}


class Ledger:
    """Within a `with` block: what `read` (a clock, a counter) grows by inside each part of a model, by the
    part's name. A part within another counts as its own alone; `other` is what happens in none.

    parts     the modules of each part. They are seen where they are called, as `module(...)`.
    methods   what parts compute where a module is not called so, but by these methods
    """

    def __init__(
        self,
        parts: Mapping[str, Sequence[nn.Module]],
        read: Callable[[], float],
        methods: PartMethods = NO_METHODS,
    ):
        self.parts = parts
        self.read = read
        self.methods = methods
        self.shares: dict[str, float] = {}
        self.within: list[str] = []  # parts that have begun and not ended, the innermost last
        self.handles: list[RemovableHandle] = []

    def __enter__(self) -> "Ledger":
        self.shares = dict.fromkeys([*self.parts, OTHER_PART], 0)
        self.within = [OTHER_PART]
        for name, modules in self.parts.items():
            for module in modules:
                # a hook is called where the module is, so that generate's own calls count
                self.handles.append(module.register_forward_pre_hook(partial(self._begin_part, name)))
                self.handles.append(module.register_forward_hook(self._end_part))
        for name, methods in self.methods.items():
            for method in methods:
                self._watch_method(name, method)
        self.last = self.read()
        return self

    def __exit__(self, *_: object) -> None:
        self._credit_part()
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        for methods in self.methods.values():
            for method in methods:
                delattr(method.module, method.name)  # the class's is there again

    def _watch_method(self, part: str, method: PartMethod) -> None:
        """Until the end, in the place of the class's method: the same between a part's begin and end."""
        compute = getattr(method.module, method.name)

        @wraps(compute)
        def compute_as_part(*args: Any, **options: Any) -> Any:
            self._begin_part(part)
            output = compute(*args, **options)
            self._end_part()
            return output

        setattr(method.module, method.name, compute_as_part)

    def _begin_part(self, name: str, *_: object) -> None:
        self._credit_part()
        self.within.append(name)

    def _end_part(self, *_: object) -> None:
        self._credit_part()
        self.within.pop()

    def _credit_part(self) -> None:
        """What has come since the last look belongs to the innermost part."""
        now = self.read()
        # on a stack: what an inner part takes is not its outer part's
        self.shares[self.within[-1]] += now - self.last
        self.last = now


def read_clock() -> float:
    """Seconds, once the accelerator has finished what it was given."""
    wait_for_accelerator()
    return perf_counter()


def compare_rounds(seconds: Sequence[float], reference: Sequence[float]) -> Spread:
    """How many times longer than the reference, round by round."""
    return find_spread(ours / theirs for ours, theirs in zip(seconds, reference, strict=True))


def make_training_step(
    call: TensorFunction, features: Tensor, weights: Iterable[Tensor] = ()
) -> StepFunction:
    """Forward and backward of `call(features)`; gradients of the step before are dropped."""
    leaves = [features, *weights]

    def step() -> None:
        # as an optimiser's zero_grad does: gradients that pile up would cost an addition more
        for leaf in leaves:
            leaf.grad = None
        output = call(features)
        output.backward(torch.ones_like(output))

    return step


def count_kept_bytes(call: TensorFunction, features: Tensor, weights: Iterable[Tensor] = ()) -> int:
    """What autograd keeps between forward and backward beyond the features and the weights."""
    leaf_places = set()
    for leaf in (features, *weights):
        leaf_places.add(leaf.untyped_storage().data_ptr())
    # address -> tensor: views share a storage, and as long as a tensor is held its address is not used again
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call(features)
    total = 0
    for place, tensor in saved.items():
        if place not in leaf_places:
            total += tensor.untyped_storage().nbytes()
    return total


@contextmanager
def allow_counting() -> Iterator[None]:
    """Forward passes that can be counted, on the meta device too: each token is multiplied by the weights of
    the experts that it is sent to, and of no others."""
    earlier_functions = {}
    # torch's counter has no formula for the grouped product that experts take else, which on the meta device
    # wants bfloat16; how tokens are shared among the experts does not matter
    for name in ("eager", *ALL_EXPERTS_FUNCTIONS):
        earlier_functions[name] = ALL_EXPERTS_FUNCTIONS.get(name)
        ALL_EXPERTS_FUNCTIONS[name] = batched_mm_experts_forward
    try:
        with allow_meta_forward():
            yield
    finally:
        for name, function in earlier_functions.items():
            if function is None:
                del ALL_EXPERTS_FUNCTIONS[name]
            else:
                ALL_EXPERTS_FUNCTIONS[name] = function


def count_flops(call: StepFunction) -> int:
    """Floating point operations of a call, a multiply-add counted as two; works on the meta device."""
    return sum(count_flops_by_part(call, {}).values())


def count_flops_by_part(
    call: StepFunction, parts: Mapping[str, Sequence[nn.Module]], methods: PartMethods = NO_METHODS
) -> dict[str, int]:
    """The same by part of the model, what happens in no part as `other`."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), allow_counting():
        # the counter's total grows with every operation: read as a clock is, it gives shares by part
        with Ledger(parts, counter.get_total_flops, methods) as ledger:
            call()
        return {part: int(flops) for part, flops in ledger.shares.items()}
