"""Cells that an earlier report tells of: `earlier=DIR` takes from it what is not finished below `out=`.

A cell is found by its evaluation's key, the hash of all that its answers depend on, so that no row is filled
with the answers of another configuration. What a report counts, measures or draws is not taken along.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablations import outcomes
from ablations.outcomes import Report, ReportTable

RECOMPUTED_KEYS = ("prefill_flops", "ttft_ms", "ttft_ms_low", "ttft_ms_high", "peak_memory_mib")
RUN_KEYS = ("cells", "finished", "versions", "machine")


@dataclass(frozen=True)
class EarlierCell:
    """A cell: the table that has its questions, which of them it answered right, tokens and parameters."""

    table: ReportTable
    right: NDArray[np.bool_]
    efficiency: dict[str, float]


@dataclass(frozen=True)
class EarlierReport:
    """An earlier report's cells by key; none where there is no such report."""

    report: Report | None = None
    cells: dict[str, EarlierCell] = field(default_factory=dict)

    @property
    def finished_seeds(self) -> set[str]:
        tables = self.report.tables if self.report else ()
        return {str(seed) for table in tables for row in table.rows for seed in row.outcomes}

    @property
    def contributing_runs(self) -> list[dict[str, Any]]:
        """How its cells came about: itself, then what it was made from."""
        made = self.report.made if self.report else {}
        own = {name: made[name] for name in RUN_KEYS if name in made}
        return [*([own] if own.get("cells") else []), *made.get("earlier", [])]


def read_earlier_report(folder: Path | None) -> EarlierReport:
    """What the report in a folder tells; UsageError for a folder that has none."""
    if folder is None:
        return EarlierReport()
    report = outcomes.load_report(folder, "earlier")
    found = {}
    for table in report.tables:
        for row in table.rows:
            own = {name: value for name, value in row.efficiency.items() if name not in RECOMPUTED_KEYS}
            found |= {key: EarlierCell(table, row.outcomes[seed], own) for seed, key in row.keys.items()}
    return EarlierReport(report, found)
