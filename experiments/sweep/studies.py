"""Cells that another study has finished already: a sweep with `earlier=DIR` leaves them out.

What a study's folder looks like is known to the package that wrote it. It offers a function in the
entry-point group `slothkit.studies` that reads the folder: the keys of the evaluations in it, or None or a
UsageError where the folder is none of its own. Ours is `ablations/study.py`.
"""

from pathlib import Path

from compressors.errors import UsageError
from experiments.registries import load_offers

STUDY_GROUP = "slothkit.studies"


def read_finished_keys(folder: Path) -> set[str]:
    """Keys of the cells that the study in `folder` has, from the first package that knows it. UsageError if
    none does: what the first of them complains of."""
    complaints: list[UsageError] = []
    for read_keys in load_offers(STUDY_GROUP).values():
        try:
            keys = read_keys(folder)
        except UsageError as error:
            complaints.append(error)
            continue
        if keys is not None:
            return set(keys)
    if complaints:
        raise complaints[0]
    raise UsageError(f"earlier={folder}: no study that an installed package knows")
