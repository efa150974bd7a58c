"""What came of a sweep, for Python: rows as printed, cells with their answers and models."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.config.presets import read_yaml
from experiments.config.schema import Config
from experiments.store.results import PREDICTIONS_FILE, RUN_FILE, ScoreGroup, read_metrics, title_cell
from experiments.sweep import score_table
from experiments.sweep.scheduler import FailedCell

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class CellResult:
    """A finished cell.

    key      of its evaluation: the hash of all that its answers depend on
    folder   config.yaml, metrics.json, predictions.jsonl, stages.json and run.yaml
    """

    cell: Cell = field(repr=False)
    key: str
    folder: Path

    @property
    def label(self) -> str:
        """What its row is called; cells that differ in the seed share a row."""
        return self.cell.label

    @property
    def seed(self) -> int:
        return self.cell.config.seed

    @property
    def config(self) -> Config:
        """All of its settings."""
        return self.cell.config

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """Shares from 0 to 1: overall, families; counts and n of questions; efficiency."""
        return read_metrics(self.folder)

    @cached_property
    def predictions(self) -> list[dict[str, Any]]:
        """A mapping a question: id, images, family, question, answer, prediction, correct."""
        lines = (self.folder / PREDICTIONS_FILE).read_text(encoding="utf-8").splitlines()
        return list(map(json.loads, lines))

    @property
    def run(self) -> dict[str, Any]:
        """How its stages came about, by the directory of each below the output directory: finished, seconds,
        command, commits, versions, python, device."""
        return read_yaml(self.folder / RUN_FILE)

    def load(self) -> tuple[Any, Any]:
        """(model, processor) as stage 2 left them, in eval mode, on a GPU where there is one: a transformers
        model, and the processor that makes its inputs. UsageError where the weights are gone."""
        from experiments.models import saved  # which is slow to import: results are read without it

        return saved.load_trained_model(self.folder)


@dataclass(frozen=True)
class SweepResults(Sequence[CellResult]):
    """The finished cells of a sweep, in the order that they were asked for; printed, its tables.

    root       the output directory
    groups     tables: rows that answer the same questions, chance and blind first
    cells      finished cells, which indexing gives
    failed     the others, with the reason and the log
    left_out   how many cells an earlier report has (earlier=)
    """

    root: Path
    groups: list[ScoreGroup]
    cells: list[CellResult]
    failed: list[FailedCell]
    left_out: int = 0

    @overload
    def __getitem__(self, index: int) -> CellResult: ...

    @overload
    def __getitem__(self, index: slice) -> list[CellResult]: ...

    def __getitem__(self, index: int | slice) -> CellResult | list[CellResult]:
        return self.cells[index]

    def __len__(self) -> int:
        return len(self.cells)

    def __str__(self) -> str:
        return score_table.format_score_markdown(self.groups)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return str(self)

    @property
    def table(self) -> Path:
        """Where the tables lie as Markdown; the CSV is beside it."""
        return self.root / "table.md"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of table.csv: questions, row, seeds, n, tokens; scores in % and their ±, as NAME_pm."""
        return score_table.make_score_records(self.groups)

    @property
    def predictions(self) -> list[dict[str, Any]]:
        """All answers, with the row and seed of each; cut: whether evaluate.max_new_tokens has cut it."""
        answers = []
        for cell in self.cells:
            for answer in cell.predictions:
                is_cut = answer.get("cut", False)
                answers.append({"row": cell.label, "seed": cell.seed, **answer, "cut": is_cut})
        return answers

    def to_pandas(self, what: Literal["rows", "cells", "predictions"] = "rows") -> "pandas.DataFrame":
        """A data frame of the printed rows, of cells (a line a seed) or of all answers. UsageError without
        pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UsageError(
                "to_pandas() needs pandas: pip install pandas; .rows has the same as dicts"
            ) from error
        if what == "rows":
            return pandas.DataFrame(self.rows)
        if what == "predictions":
            return pandas.DataFrame(self.predictions)
        if what != "cells":
            raise UsageError(f"what={what!r}: must be one of rows, cells, predictions")
        lines = []
        for cell in self.cells:
            metrics = cell.metrics
            line: dict[str, Any] = {"row": cell.label, "seed": cell.seed, "n": metrics["n"]}
            line |= metrics.get("efficiency", {})
            line["overall"] = 100 * metrics["overall"]
            for family, score in metrics["families"].items():
                line[score_table.name_family_column(family, [*line, "folder"])] = 100 * score
            lines.append({**line, "folder": str(cell.folder)})
        return pandas.DataFrame(lines)


class CellsFailed(RuntimeError):
    """Cells of a sweep failed. `results` has the others, and why each failed."""

    def __init__(self, results: SweepResults):
        first = results.failed[0]
        message = f"{title_cell(first.cell)}: {first.reason}; see {first.log}"
        if len(results.failed) > 1:
            message += f" ({len(results.failed)} cells failed)"
        super().__init__(message)
        self.results = results
