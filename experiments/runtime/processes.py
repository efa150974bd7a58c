"""No process outlives the one that started it, however that ends."""

import threading
from collections.abc import Callable
from multiprocessing import parent_process
from multiprocessing.connection import wait


def end_with_parent(end: Callable[[], object]) -> None:
    """Calls `end`, which ends this process, when the process that started it has ended, even if by a kill."""

    def guard() -> None:
        wait([parent_process().sentinel])
        end()

    threading.Thread(target=guard, daemon=True).start()
