"""Python's search for reference cycles, which takes a quarter of the time in which large libraries load."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def spare_modules_from_collector() -> Iterator[None]:
    """For imports that take seconds, such as torch and transformers: within it cycles are not looked for, and
    what was loaded is left out of later searches, the one at the end of the process too. Nothing else should
    be made within it: it would never be freed."""
    was_enabled = gc.isenabled()
    modules_before = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > modules_before:
            gc.freeze()
        if was_enabled:
            gc.enable()
