"""What a sweep asks of a finished study: which cells it need not compute again.

`read_evaluation_keys` is what the entry-point group `slothkit.studies` offers to the sweep's `earlier=DIR`.
The sweep imports this module before it plans anything, so numpy and matplotlib stay out of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressors.errors import UsageError, shorten_reason
from compressors.reading import read_json_file
from experiments.sweep.studies import ShippedStudy, StudyScores

REPORT_FILE = "report.json"
TINY_FOLDER = Path(__file__).parent / "results" / "tiny"


@contextmanager
def explain_report_errors(folder: Path, option: str) -> Iterator[None]:
    """UsageError that names the option, for a folder without a report or with a damaged one."""
    try:
        yield
    except UsageError:  # a ValueError too, but one that says what to do
        raise
    # whatever: numpy, zipfile, zlib and we ourselves each have other words for a cut or changed file
    except Exception as error:
        reason = f"{type(error).__name__}: {shorten_reason(error)}"
        raise UsageError(
            f"{option}={folder}: not what `python -m ablations.report` wrote ({reason})"
        ) from error


def read_report_content(folder: Path, option: str) -> Any:
    """What a report noted of itself, as JSON; UsageError that names the option where there is none."""
    path = folder / REPORT_FILE
    if not path.is_file():
        raise UsageError(
            f"{option}={folder}: no {path}; give a folder that `python -m ablations.report` wrote"
        )
    return read_json_file(path)


def read_evaluation_keys(folder: Path) -> set[str]:
    """Keys of the evaluations in a report's folder; UsageError for a folder without a report.

    A key is the hash of all that a cell's answers depend on, so a cell of the same key is the same cell.
    """
    keys: set[str] = set()
    with explain_report_errors(folder, "earlier"):
        content = read_report_content(folder, "earlier")
        for table in content["tables"]:
            for row in table["rows"]:
                # reports from before there were keys have none, later ones null where a cell had none
                keys.update(key for key in row.get("keys", ()) if key)
    return keys


def read_scores(folder: Path) -> StudyScores:
    """Scores and times of a report's folder; UsageError for a folder without a report."""
    from ablations import study_scores  # numpy: a sweep with nothing to compare does without

    return study_scores.read_study_scores(folder)


# the study in this repository, which the installed package has too: earlier=tiny
TINY = ShippedStudy(TINY_FOLDER, read_evaluation_keys, read_scores)
