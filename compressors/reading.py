"""Reading files that somebody else may have made, cut or changed: a fault is one line that names the file."""

import json
import stat
from pathlib import Path
from typing import Any

from compressors.errors import UsageError, shorten, shorten_reason

BYTE_ORDER_MARK = "\ufeff"


def read_binary_file(path: Path) -> bytes:
    """A file's bytes; UsageError if it cannot be read, or is none to be read to its end."""
    check_regular_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{shorten(str(path))}: cannot be read ({shorten_reason(error)})") from error


def check_regular_file(path: Path) -> None:
    """UsageError for what is no file with an end: whoever opens a FIFO waits for ever."""
    name = shorten(str(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UsageError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise UsageError(f"{name}: cannot be read ({shorten_reason(error)})") from error
    if not stat.S_ISREG(mode):
        raise UsageError(f"{name}: not a regular file; give one")


def read_text_file(path: Path) -> str:
    """A file's text, without the byte-order mark that some editors begin it with; UsageError as for
    `read_binary_file`, and for one that is not UTF-8."""
    try:
        return read_binary_file(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error})") from error


def read_json_file(path: Path) -> Any:
    """The content of a JSON file; UsageError for anything else."""
    return parse_json(read_text_file(path), str(path))


def parse_json(text: str, where: str) -> Any:
    """The content of a JSON text; a UsageError says `where` there is anything else."""
    try:
        return json.loads(text.removeprefix(BYTE_ORDER_MARK))  # of a file whose lines come one by one
    # a number of thousands of digits is a ValueError, brackets without end are a RecursionError
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not JSON ({shorten_reason(error)})") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; UsageError for anything else."""
    values = read_json_file(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path}: expected a JSON object; the file is damaged")
    return values
