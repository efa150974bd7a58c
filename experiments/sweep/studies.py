"""Cells that another study has finished already: a sweep with `earlier=DIR` leaves them out.

What a study's folder looks like is known to the package that wrote it. It offers a function in the
entry-point group `slothkit.studies` that reads the folder: the keys of the evaluations in it, or None or a
UsageError where the folder is none of its own. Ours is `ablations/study.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressors.errors import UsageError
from compressors.registry import find_entry_points, loading_error, suggest
from experiments.registries import load_offers
from experiments.store.estimate import MeasuredStage

STUDY_GROUP = "slothkit.studies"
SHIPPED_GROUP = "slothkit.shipped_studies"


@dataclass(frozen=True)
class StudyScores:
    """What a finished study tells a sweep of the same setting.

    cells     key of an evaluation -> its scores, in the form of metrics.json
    chance    the same key -> what the most frequent answers score
    times     what its stages took, on `machine`
    place     where it lies
    """

    cells: Mapping[str, Mapping[str, Any]]
    chance: Mapping[str, Mapping[str, Any]]
    times: list[MeasuredStage]
    machine: str
    place: str


@dataclass(frozen=True)
class ShippedStudy:
    """A study that comes with a package, offered by name in `slothkit.shipped_studies`: its folder, and what
    reads keys and scores of such a folder. `earlier=NAME` is its folder."""

    folder: Path
    key_reader: Callable[[Path], set[str]]
    score_reader: Callable[[Path], StudyScores]

    def read_keys(self) -> set[str]:
        """Keys of its evaluations."""
        return self.key_reader(self.folder)

    def read_scores(self) -> StudyScores:
        """Scores and times."""
        return self.score_reader(self.folder)


def find_shipped_studies() -> dict[str, ShippedStudy]:
    """The studies that installed packages bring along, by name; none where none does."""
    studies = {}
    for name, point in sorted(find_entry_points(SHIPPED_GROUP).items()):
        try:
            studies[name] = point.load()
        except Exception as error:
            raise loading_error(f"{SHIPPED_GROUP}:", point, error) from error
    return studies


def find_study_folder(earlier: Path) -> Path:
    """What `earlier=` means: a folder, else the study of that name. UsageError for a word that is neither."""
    if earlier.is_dir() or len(earlier.parts) != 1:
        return earlier
    studies = find_shipped_studies()
    if earlier.name in studies:
        return studies[earlier.name].folder
    raise UsageError(
        f"earlier={earlier}: no such folder, and no study that comes with a package"
        f"{suggest(earlier.name, studies)}"
    )


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
