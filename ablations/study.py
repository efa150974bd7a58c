"""What a sweep asks of a finished study: which cells it need not compute again.

`read_evaluation_keys` is what the entry-point group `slothkit.studies` offers to the sweep's `earlier=DIR`.
The sweep imports this module before it plans anything, so numpy and matplotlib stay out of it.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compressors.errors import UsageError

REPORT_FILE = "report.json"


@contextmanager
def explain_report_errors(folder: Path, option: str) -> Iterator[None]:
    """UsageError that names the option, for a folder without a report or with a damaged one."""
    try:
        yield
    except UsageError:  # a ValueError too, but one that says what to do
        raise
    except FileNotFoundError as error:
        raise UsageError(
            f"{option}={folder}: no {error.filename}; give a folder that ablations.report wrote"
        ) from error
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UsageError(
            f"{option}={folder}: not what ablations.report wrote ({type(error).__name__}: {error})"
        ) from error


def read_evaluation_keys(folder: Path) -> set[str]:
    """Keys of the evaluations in a report's folder; UsageError for a folder without a report.

    A key is the hash of all that a cell's answers depend on, so a cell of the same key is the same cell.
    """
    keys: set[str] = set()
    with explain_report_errors(folder, "earlier"):
        content = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
        for table in content["tables"]:
            for row in table["rows"]:
                # reports from before there were keys have none, later ones null where a cell had none
                keys.update(key for key in row.get("keys", ()) if key)
    return keys
