"""Cells that a report has, by the key of their evaluation: a sweep with `earlier=DIR` leaves them out.

`python -m ablations.report earlier=DIR` shows them beside the sweep's own.
"""

import json
from pathlib import Path

from compressors.errors import UsageError

REPORT_FILE = "report.json"


def read_reported_keys(folder: Path) -> set[str]:
    """Keys of the cells in a report's folder; UsageError for one that has no report."""
    path = folder / REPORT_FILE
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))["tables"]
        return {key for table in tables for row in table["rows"] for key in row.get("keys", ()) if key}
    except FileNotFoundError as error:
        raise UsageError(f"earlier={folder}: no {path}; give a folder that ablations.report wrote") from error
    except (KeyError, TypeError, AttributeError, ValueError, OSError) as error:
        raise UsageError(
            f"earlier={folder}: not what ablations.report wrote ({type(error).__name__}: {error})"
        ) from error
