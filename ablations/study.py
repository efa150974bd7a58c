"""What a sweep asks of a finished study: which cells it need not compute again.

`read_evaluation_keys` is what the entry-point group `slothkit.studies` offers to the sweep's `earlier=DIR`.
The sweep imports this module before it plans anything, so numpy and matplotlib stay out of it.
"""

import json
from pathlib import Path

from compressors.errors import UsageError

REPORT_FILE = "report.json"


def read_evaluation_keys(folder: Path) -> set[str]:
    """Keys of the evaluations in a report's folder; UsageError for a folder without a report.

    A key is the hash of all that a cell's answers depend on, so a cell of the same key is the same cell.
    """
    path = folder / REPORT_FILE
    keys: set[str] = set()
    try:
        for table in json.loads(path.read_text(encoding="utf-8"))["tables"]:
            for row in table["rows"]:
                # reports from before there were keys have none, later ones null where a cell had none
                keys.update(key for key in row.get("keys", ()) if key)
    except FileNotFoundError as error:
        raise UsageError(f"earlier={folder}: no {path}; give a folder that ablations.report wrote") from error
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UsageError(
            f"earlier={folder}: not what ablations.report wrote ({type(error).__name__}: {error})"
        ) from error
    return keys
