"""What every command has in common: bad input, a full disk and Ctrl-C end in one line and an exit code."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from compressors.errors import UsageError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows what there is)")


def guarded(run: Callable[[], int], elsewhere: str, interrupted: str = "interrupted") -> int:
    """What `run` returns; 2 for bad input or a full disk (`elsewhere`: how to write to another place), 130
    for Ctrl-C."""
    try:
        return run()
    except UsageError as error:
        return complain(str(error), 2)
    except OSError as error:
        return complain(f"{reason(error)}; free space there or {elsewhere}", 2)
    except KeyboardInterrupt:
        return complain(interrupted, 130)


def reason(error: OSError) -> str:
    """Which file, and what is wrong with it."""
    where = f"{error.filename}: " if error.filename else ""
    return where + (error.strerror or str(error).partition("\n")[0])


def complain(text: str, code: int) -> int:
    """One line on standard error; the exit code."""
    sys.stderr.write(f"error: {' '.join(text.split())}\n")
    return code
