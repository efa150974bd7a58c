"""What every command has in common: bad input, a full disk and Ctrl-C end in one line and an exit code."""

import argparse
from typing import NoReturn

from compressors.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """argparse whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows what there is)")
