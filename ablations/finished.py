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
from experiments.metrics.chance import score_majority_answers
from experiments.store.plan import Stage, plan_stages
from experiments.store.results import METRICS_FILE, PREDICTIONS_FILE
from experiments.store.store import Store
from llm_adapters.conversation import Turn

CORRECT_FLAG = b'"correct": '  # never inside a JSON string, where its quotes would be escaped


@dataclass(frozen=True)
class FinishedCell:
    """A finished cell. `kept`: what an earlier report tells of it, where it is not below `out=`."""

    cell: Cell
    stage: Stage
    earlier_cell: EarlierCell | None = None


def find_finished_cell(cell: Cell, store: Store, known: EarlierReport) -> FinishedCell | None:
    """A cell, if it is finished: below the output directory, else in an earlier report."""
    stage = plan_stages(cell.config)
    if store.find_status(stage) == "done":
        return FinishedCell(cell, stage)
    return FinishedCell(cell, stage, known.cells[stage.key]) if stage.key in known.cells else None


def fill_questions(table: ReportTable, done: FinishedCell, store: Store) -> None:
    """Give a table the questions that a cell has answered."""
    if done.earlier_cell is not None:
        for name in ("ids", "pictures", "families", "chance"):
            setattr(table, name, getattr(done.earlier_cell.table, name))
        return
    read = read_questions(store.locate_result(done.stage) / PREDICTIONS_FILE)
    table.ids = np.array([sample.id for sample in read])
    table.pictures = np.array([identify_picture(sample) for sample in read])
    table.families = np.array([sample.families[0] for sample in read])
    table.chance = score_majority_answers(read)


def load_outcomes(done: FinishedCell, store: Store, table: ReportTable) -> NDArray[np.bool_]:
    """(Q,) right or wrong, of a table's questions."""
    if done.earlier_cell is not None:
        if not np.array_equal(done.earlier_cell.table.ids, table.ids):
            raise UsageError(
                f"{table.heading}: the earlier report has '{done.cell.label}' with other "
                "questions than the cells below out=, under one key; leave earlier= out"
            )
        return done.earlier_cell.right
    path = store.locate_result(done.stage) / PREDICTIONS_FILE
    right = read_correct_flags(path)
    if len(right) != len(table.ids):
        raise UsageError(
            f"{path}: {len(right)} answers to {len(table.ids)} questions; remove that folder "
            "and run the sweep again"
        )
    return right


def read_efficiency(done: FinishedCell, store: Store) -> dict[str, float]:
    """Tokens and parameters, as the evaluation noted them."""
    if done.earlier_cell is not None:
        return dict(done.earlier_cell.efficiency)
    metrics = json.loads((store.locate_result(done.stage) / METRICS_FILE).read_text(encoding="utf-8"))
    return dict(metrics.get("efficiency", {}))


def read_questions(path: Path) -> list[Sample]:
    """The questions of a file of predictions, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Sample(
            row["id"], tuple(row.get("images", ())), (Turn(row["question"], row["answer"]),), (row["family"],)
        )
        for row in rows
    ]


def identify_picture(sample: Sample) -> str:
    """What questions that are answered right or wrong together have in common: the first picture that they
    see; their conversation where they see none (or where an earlier version has not written it down)."""
    return str(sample.images[0]) if sample.images else sample.id.rpartition("#")[0] or sample.id


def read_correct_flags(path: Path) -> NDArray[np.bool_]:
    """(Q,) right or wrong. A thousand files are read in a second, so they are not parsed as JSON."""
    pieces = path.read_bytes().split(CORRECT_FLAG)[1:]
    return np.array([piece[:1] == b"t" for piece in pieces])
