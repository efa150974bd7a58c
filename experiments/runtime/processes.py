"""No process outlives the one that started it, however that ends."""

import threading
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import wait


def end_with_parent(end: Callable[[], object]) -> None:
    """Calls `end`, which ends this process, when the process that started it has ended, even if by a kill."""

    parent = parent_process()
    assert parent is not None  # called in processes that multiprocessing started

    def guard() -> None:
        # the sentinel is closed by the operating system, so that a kill counts too
        wait([parent.sentinel])
        end()

    threading.Thread(target=guard, daemon=True).start()
