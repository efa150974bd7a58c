"""What a report is made of: which questions each row of a table answered right at each seed.

It is made of finished cells (`collect.py`), or read from an earlier report (`report_files.py`).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablations.claims.spec import Claim

TRAINING_SEED = 0  # at which rows' training is compared, whether or not it has finished


@dataclass
class ReportRow:
    """A line of a table.

    block        title of the block that it stands in
    ours         why a value of it is our own choice, if one is
    outcomes     seed -> (Q,) right or wrong, or scores from 0 to 1, of finished cells
    missing      seeds whose cells have not finished
    efficiency   tokens, parameters, FLOPs, times: column -> value
    keys         seed -> the key of its evaluation, by which a later report finds it
    training     keys of its training stages at TRAINING_SEED, in order: rows may share some
    settings     setting -> its value, of those that tell the table's rows apart
    baseline     label of the row that it is compared with; nothing where there is none
    uncompressed label of the row that has its settings and leaves the patches as they are
    absent       why it has no cell; nothing where it has some
    """

    block: str
    label: str
    ours: str = ""
    outcomes: dict[int, NDArray] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    efficiency: dict[str, float] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)
    training: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)
    baseline: str = ""
    uncompressed: str = ""
    absent: str = ""


@dataclass
class ReportTable:
    """A table of the report. It has no questions where no cell has finished.

    ids          (Q,) of the questions
    families     (Q,) what each of them asks for
    pictures     (Q,) what each of them is about
    chance       accuracy of always giving the most frequent answer, in the form of metrics.json
    sweep        the command that runs its cells
    baseline     what its rows are compared with, a row or a compressor; nothing where they are not
    left_out     labels of the rows of its file that the report was not asked for
    """

    name: str
    heading: str
    title: str
    claims: tuple[Claim, ...]
    rows: list[ReportRow]
    ids: NDArray = field(default_factory=lambda: np.array([], "<U1"))
    families: NDArray = field(default_factory=lambda: np.array([], "<U1"))
    pictures: NDArray = field(default_factory=lambda: np.array([], "<U1"))
    chance: dict[str, Any] = field(default_factory=dict)
    sweep: str = ""
    baseline: str = ""
    left_out: tuple[str, ...] = ()

    @property
    def family_names(self) -> list[str]:
        """All families; none if there is but one, which would repeat the whole."""
        names = sorted(set(self.families.tolist()))
        return names if len(names) > 1 else []

    @property
    def picture_numbers(self) -> NDArray[np.intp]:
        """(Q,) a number for each question's picture."""
        return np.unique(self.pictures, return_inverse=True)[1]

    @property
    def outcomes_by_label(self) -> dict[str, dict[int, NDArray]]:
        """Row label -> its outcomes by seed, as claims are judged."""
        outcomes = {}
        for row in self.rows:
            outcomes[row.label] = row.outcomes
        return outcomes

    @property
    def training_by_label(self) -> dict[str, tuple[str, ...]]:
        """Row label -> the keys of its training stages."""
        training = {}
        for row in self.rows:
            training[row.label] = row.training
        return training

    def compute_accuracies(
        self, row: ReportRow, family: str | None = None, seeds: Iterable[int] | None = None
    ) -> list[float]:
        """Accuracy in % at each of these seeds, or all, of all questions or those of a family."""
        accuracies = []
        for seed in row.outcomes if seeds is None else seeds:
            right = row.outcomes[seed]
            if family is not None:
                right = right[self.families == family]
            accuracies.append(100.0 * float(right.mean()))
        return accuracies


@dataclass
class Report:
    """All tables, and how they came about.

    provenance   command, versions, seconds, where rows were measured, whose attention maps these are
    maps         attention maps as PNG files
    """

    tables: list[ReportTable]
    provenance: dict[str, Any]
    maps: list[bytes] = field(default_factory=list)
