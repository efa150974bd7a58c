"""Work on data that is done ahead by processes, while the one that asks computes."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from compressors.errors import UsageError
from experiments.runtime.processor import count_cores

Item = TypeVar("Item")
MOST_WORKERS = 8  # a process; more of them wait for the disk, and hold a batch in memory each


def count_workers(setting: str, world: int = 1) -> int:
    """How many data loader processes `data.workers` means for one of `world` processes. auto: the cores
    beside a GPU; none on a CPU, whose cores all train."""
    if setting != "auto":
        return int(setting)
    if not torch.cuda.is_available():
        return 0
    return max(1, min(MOST_WORKERS, count_cores() // world - 1))


def read_ahead(read: Callable[[Item], Any], items: Iterable[Item], workers: int = 0) -> Iterator[Any]:
    """`read` of each item, in order, by so many processes; 0: by this one. Items are taken here, a few ahead
    of those that are read. An error of one line is raised here as it was there."""
    if workers:
        raise_file_limit()
    loader = DataLoader(
        ReadItems(read),
        sampler=items,  # torch calls them indices, and hands them to a worker as they are
        batch_size=None,  # an item is what is asked for, not a sample to be stacked
        collate_fn=take_item,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )
    for result in loader:
        if isinstance(result, Exception):
            raise result
        yield result


def raise_file_limit() -> None:
    """As many open files as the system lets this process have: each tensor that a worker sends is one."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class ReadItems(Dataset, Generic[Item]):
    """Items as they are read. An error that is one line is an item like others: raised in a worker, it would
    come out as a page with the worker's trace, and without its errno."""

    def __init__(self, read: Callable[[Item], Any]):
        self.read = read

    def __getitem__(self, item: Item) -> Any:
        try:
            return self.read(item)
        except (UsageError, OSError) as error:
            return error


def take_item(item: Any) -> Any:
    """What a worker sends, as it is."""
    return item
