"""Peak memory of a call: what a GPU's allocator tells; elsewhere the tensors that are alive, counted.

A process's own peak (`ru_maxrss`) never falls, so that it tells nothing of a second call.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def measure_peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most that `call` holds at once beyond what was there before, in bytes. On a GPU with its libraries'
    workspaces and the allocator's rounding; elsewhere tensors alone, without what an operation needs
    inside, and more slowly."""
    if device.type != "cuda":
        with LiveBytes() as live:
            call()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def count_weight_bytes(parameters: Iterable[nn.Parameter]) -> int:
    """Bytes of parameters."""
    return sum(parameter.nbytes for parameter in parameters)


class LiveBytes(TorchDispatchMode):
    """Counts bytes of the tensors that operations make, as long as anything holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}  # identity -> storage, its bytes
        self.now = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        inputs = set()
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                inputs.add(identify_storage(leaf))
        output = func(*args, **(kwargs or {}))
        self.drop_dead_storages()  # first: what has died meanwhile is not there beside the new ones
        for tensor in tree_leaves(output):
            # what aliases an input is no new memory
            if isinstance(tensor, Tensor) and identify_storage(tensor) not in inputs:
                self.add_storage(tensor)
        self.peak = max(self.peak, self.now)
        return output

    def add_storage(self, tensor: Tensor) -> None:
        """Counts a storage once."""
        identity = identify_storage(tensor)
        # views share the storage of what they are views of
        if identity not in self.storages:
            storage = tensor.untyped_storage()
            self.storages[identity] = (StorageWeakRef(storage), storage.nbytes())
            self.now += storage.nbytes()

    def drop_dead_storages(self) -> None:
        """Forgets storages that nothing holds any more."""
        for identity, (storage, size) in list(self.storages.items()):
            if storage.expired():
                del self.storages[identity]
                self.now -= size


def identify_storage(tensor: Tensor) -> int:
    """What tensors that share memory have in common; a weak reference keeps it from being used again."""
    return tensor.untyped_storage()._cdata
