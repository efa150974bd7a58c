"""Python's search for reference cycles, which takes a fifth of the time in which large libraries load."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def pause_cycle_collector() -> Iterator[None]:
    """Within it cycles are not looked for: for work of seconds that makes many objects that stay, such as
    the modules of torch and transformers, each of which would be looked at again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
