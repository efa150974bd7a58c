"""Reading files that somebody else may have made, cut or changed: a fault is one line that names the file."""

import json
from pathlib import Path
from typing import Any

from compressors.errors import UsageError, shorten


def read_binary_file(path: Path) -> bytes:
    """A file's bytes; UsageError if it cannot be read, or is none to be read to its end."""
    name = shorten(str(path))
    try:
        is_other = path.exists() and not path.is_file()  # a FIFO would keep us waiting for ever
        content = b"" if is_other else path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{name}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise UsageError(f"{name}: cannot be read ({shorten_reason(error)})") from error
    if is_other:
        raise UsageError(f"{name}: not a regular file; give one")
    return content


def read_text_file(path: Path) -> str:
    """A file's text; UsageError as for `read_binary_file`, and for one that is not UTF-8."""
    try:
        return read_binary_file(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error})") from error


def read_json_file(path: Path) -> Any:
    """The content of a JSON file; UsageError for anything else."""
    text = read_text_file(path)
    try:
        return json.loads(text)
    # a number of thousands of digits is a ValueError, brackets without end are a RecursionError
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({shorten_reason(error)})") from error


def shorten_reason(error: BaseException) -> str:
    """What a library says of a fault, on one line of bounded length."""
    return shorten(" ".join(str(error).split()))
