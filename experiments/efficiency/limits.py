"""How near a part comes to what its machine can do: the bytes that it has to move at the speed of a copy, or
its multiplications at the speed of a large matrix product, whichever takes longer.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.efficiency import timing

COPY_BYTES = 64 * 2**20  # more than caches hold
PRODUCT_SIZE = 1024  # rows and columns
ALLOCATIONS = ("empty", "empty_strided", "empty_like", "new_empty", "_unsafe_view", "lift_fresh")


class KernelCounter(TorchDispatchMode):
    """Counts what PyTorch launches inside: its operations without views and allocations, whatever the
    device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATIONS:
            self.count += 1
        return func(*args, **(kwargs or {}))


def count_kernels(call: Callable[[], object]) -> int:
    """Kernels that a call launches. Not to be asked in inference mode, which shows a linear layer or a
    reshape in one piece."""
    with KernelCounter() as counter:
        call()
    return counter.count


class Limit(NamedTuple):
    """bytes    that a call has to move: inputs, weights and output once
    flops    of its matrix products and convolutions
    """

    bytes: int
    flops: int


def find_limit(call: Callable[[], Tensor], tensors: Iterable[Tensor]) -> Limit:
    """What a call that reads `tensors` cannot do without."""
    moved = count_bytes([*tensors, call()])
    return Limit(moved, timing.count_flops(call))


def count_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def make_references(place: dict[str, Any]) -> tuple[dict[str, Callable[[], object]], Limit]:
    """A copy and a matrix product with `place`'s device and dtype, by name, and what each of them does."""
    source = torch.ones(COPY_BYTES, dtype=torch.uint8, device=place["device"])
    target = torch.empty_like(source)
    matrix = torch.randn(PRODUCT_SIZE, PRODUCT_SIZE, **place)
    calls: dict[str, Callable[[], object]] = {
        "copy": partial(target.copy_, source),
        "product": partial(torch.matmul, matrix, matrix),
    }
    return calls, Limit(2 * COPY_BYTES, 2 * PRODUCT_SIZE**3)  # a copy reads and writes
