"""Cells that an earlier report tells of: `earlier=DIR` takes from it what is not finished below `out=`.

A cell is found by its evaluation's key, the hash of all that its answers depend on, so that no row is filled
with the answers of another configuration. What a report counts, measures or draws is not taken along; at how
many seeds it has judged its claims is (looks_file.py).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ablations import report_files
from ablations.outcomes import Report, ReportTable
from experiments.sweep.studies import find_study_folder

# columns that a report counts or measures itself
RECOMPUTED_COLUMNS = ("prefill_flops", "ttft_ms", "ttft_ms_low", "ttft_ms_high", "peak_memory_mib")
# what a report's provenance says of its cells, not of itself
RUN_KEYS = ("cells", "finished", "versions", "machine")


@dataclass(frozen=True)
class EarlierCell:
    """A cell as an earlier report has it.

    table        the table that has its questions
    right        (Q,) which of them it answered right, or their scores
    efficiency   tokens and parameters
    """

    table: ReportTable
    right: NDArray
    efficiency: dict[str, float]


@dataclass(frozen=True)
class EarlierReport:
    """An earlier report's cells by key; none where there is no such report."""

    report: Report | None = None
    cells: dict[str, EarlierCell] = field(default_factory=dict)

    @property
    def finished_seeds(self) -> set[str]:
        """All seeds that any of its cells has."""
        seeds: set[str] = set()
        if self.report is None:
            return seeds
        for table in self.report.tables:
            for row in table.rows:
                seeds.update(str(seed) for seed in row.outcomes)
        return seeds

    @property
    def contributing_runs(self) -> list[dict[str, Any]]:
        """How its cells came about: itself, then what it was made from."""
        if self.report is None:
            return []
        provenance = self.report.provenance
        runs: list[dict[str, Any]] = []
        if provenance.get("cells"):  # none of its own where all were taken from reports before it
            runs.append({name: provenance[name] for name in RUN_KEYS if name in provenance})
        return runs + provenance.get("earlier", [])


def read_earlier_report(folder: Path | None) -> EarlierReport:
    """What the report in a folder tells; UsageError for a folder that has none."""
    if folder is None:
        return EarlierReport()
    report = report_files.load_report(find_study_folder(folder), "earlier")
    cells = {}
    for table in report.tables:
        for row in table.rows:
            efficiency = dict(row.efficiency)
            for column in RECOMPUTED_COLUMNS:
                efficiency.pop(column, None)
            for seed, key in row.keys.items():
                cells[key] = EarlierCell(table, row.outcomes[seed], efficiency)
    return EarlierReport(report, cells)
