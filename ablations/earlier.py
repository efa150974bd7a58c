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
from ablations.outcomes import Report, Table

REPORTED = ("prefill_flops", "ttft_ms", "ttft_ms_low", "ttft_ms_high", "peak_memory_mib")
RUN = ("cells", "finished", "versions", "machine")


@dataclass(frozen=True)
class Kept:
    """A cell: the table that has its questions, which of them it answered right, tokens and parameters."""

    table: Table
    right: NDArray[np.bool_]
    efficiency: dict[str, float]


@dataclass(frozen=True)
class Earlier:
    """An earlier report's cells by key; none where there is no such report."""

    report: Report | None = None
    cells: dict[str, Kept] = field(default_factory=dict)

    @property
    def seeds(self) -> set[str]:
        tables = self.report.tables if self.report else ()
        return {str(seed) for table in tables for row in table.rows for seed in row.outcomes}

    @property
    def runs(self) -> list[dict[str, Any]]:
        """How its cells came about: itself, then what it was made from."""
        made = self.report.made if self.report else {}
        own = {name: made[name] for name in RUN if name in made}
        return [*([own] if own.get("cells") else []), *made.get("earlier", [])]


def read(folder: Path | None) -> Earlier:
    """What the report in a folder tells; UsageError for a folder that has none."""
    if folder is None:
        return Earlier()
    report = outcomes.load(folder, "earlier")
    found = {}
    for table in report.tables:
        for row in table.rows:
            own = {name: value for name, value in row.efficiency.items() if name not in REPORTED}
            found |= {key: Kept(table, row.outcomes[seed], own) for seed, key in row.keys.items()}
    return Earlier(report, found)
