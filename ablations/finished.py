"""Finished cells as a report sees them: below the output directory, or told of by an earlier report."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ablations.earlier import EarlierCell, EarlierReport
from ablations.outcomes import ReportTable
from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.data.llava import Sample
from experiments.store.plan import Stage, plan_stages
from experiments.store.results import PREDICTIONS_FILE, read_chance, read_metrics, read_questions
from experiments.store.store import Store

CORRECT_FLAG = b'"correct": '  # never inside a JSON string, where its quotes would be escaped


@dataclass(frozen=True)
class FinishedCell:
    """A finished cell with its evaluation; `earlier_cell` where an earlier report has it, `out=` has not."""

    cell: Cell
    stage: Stage
    earlier_cell: EarlierCell | None = None


def find_finished_cell(cell: Cell, store: Store, earlier_report: EarlierReport) -> FinishedCell | None:
    """A cell, if it is finished: below the output directory, else in an earlier report."""
    stage = plan_stages(cell.config)
    if store.find_whole_result(stage) is not None:
        return FinishedCell(cell, stage)
    if stage.key in earlier_report.cells:
        return FinishedCell(cell, stage, earlier_report.cells[stage.key])
    return None


def fill_questions(table: ReportTable, finished_cell: FinishedCell, store: Store) -> None:
    """Give a table the questions that a cell has answered."""
    if finished_cell.earlier_cell is not None:
        earlier_table = finished_cell.earlier_cell.table
        table.ids = earlier_table.ids
        table.pictures = earlier_table.pictures
        table.families = earlier_table.families
        table.chance = earlier_table.chance
        return
    evaluation = store.locate_result(finished_cell.stage)
    samples = read_questions(evaluation / PREDICTIONS_FILE)
    ids = []
    pictures = []
    families = []
    for sample in samples:
        assert sample.families is not None  # read_questions gives each one
        ids.append(sample.id)
        pictures.append(identify_picture(sample))
        families.append(sample.families[0])
    table.ids = np.array(ids)
    table.pictures = np.array(pictures)
    table.families = np.array(families)
    table.chance = read_chance(evaluation)


def load_outcomes(finished_cell: FinishedCell, store: Store, table: ReportTable) -> NDArray:
    """(Q,) right or wrong, or scores from 0 to 1, of a table's questions. UsageError for answers to other
    questions."""
    earlier_cell = finished_cell.earlier_cell
    if earlier_cell is not None:
        if not np.array_equal(earlier_cell.table.ids, table.ids):
            raise UsageError(
                f"{table.heading}: the earlier report has '{finished_cell.cell.label}' with other "
                "questions than the cells below out=, under one key; leave earlier= out"
            )
        return earlier_cell.right
    path = store.locate_result(finished_cell.stage) / PREDICTIONS_FILE
    right: NDArray = read_correct_flags(path)
    if "metric" in finished_cell.stage.depends:
        right = read_scores(path)
    if len(right) != len(table.ids):
        raise UsageError(
            f"{path}: {len(right)} answers to {len(table.ids)} questions; remove that folder "
            "and run the sweep again"
        )
    return right


def read_efficiency(finished_cell: FinishedCell, store: Store) -> dict[str, float]:
    """Tokens and parameters, as the evaluation noted them."""
    if finished_cell.earlier_cell is not None:
        return dict(finished_cell.earlier_cell.efficiency)
    metrics = read_metrics(store.locate_result(finished_cell.stage))
    return dict(metrics.get("efficiency", {}))


def identify_picture(sample: Sample) -> str:
    """What questions that are answered right or wrong together have in common: the first picture that they
    see; their conversation where they see none (or where an earlier version has not written it down)."""
    if sample.images:
        return str(sample.images[0])
    # CONVERSATION#TURN; an id without a turn stands for itself
    return sample.id.rpartition("#")[0] or sample.id


def read_scores(path: Path) -> NDArray[np.float64]:
    """(Q,) scores from 0 to 1, of a metric that gives more than right and wrong."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return np.array([json.loads(line)["score"] for line in lines], np.float64)


def read_correct_flags(path: Path) -> NDArray[np.bool_]:
    """(Q,) right or wrong. A thousand files are read in a second, so they are not parsed as JSON."""
    answers = path.read_bytes().split(CORRECT_FLAG)[1:]  # each begins with true or false
    return np.array([answer[:1] == b"t" for answer in answers])
