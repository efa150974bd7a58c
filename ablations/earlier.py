"""Cells that an earlier report tells of: `earlier=DIR` takes from it what is not finished below `out=`.

A cell is found by its evaluation's key, the hash of all that its answers depend on, so that no row is filled
with the answers of another configuration. What a report counts, measures or draws is not taken along. At how
many seeds it has judged its claims is: whoever adds seeds afterwards has looked before.
"""

from collections import defaultdict
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ablations import report_files
from ablations.claims.looks import SeedsByPair, note_look, recall_looks
from ablations.claims.spec import Claim
from ablations.outcomes import Report, ReportTable
from compressors.errors import UsageError
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


def collect_looks(earlier_report: EarlierReport, folder: Path) -> dict[tuple[str, str], set[SeedsByPair]]:
    """(table, text of a claim) -> at how many seeds of its pairs it has been judged before: by the earlier
    report, and by the one that stands in the folder of the next."""
    reports = []
    if earlier_report.report is not None:
        reports.append(earlier_report.report)
    with suppress(UsageError):  # none there, or one that cannot be read any more and will be replaced
        reports.append(report_files.load_report(folder))
    looks: defaultdict[tuple[str, str], set[SeedsByPair]] = defaultdict(set)
    for report in reports:
        for table in report.tables:
            for claim in table.claims:
                looks[table.name, claim.text] |= note_look(claim, table.outcomes_by_label)
    return looks


def note_looks(
    table: ReportTable, looks_before: Mapping[tuple[str, str], Set[SeedsByPair]]
) -> tuple[Claim, ...]:
    """A table's claims, each with those of `collect_looks`."""
    claims = []
    for claim in table.claims:
        looks = looks_before.get((table.name, claim.text), frozenset())
        claims.append(replace(claim, looks=recall_looks(claim, table.outcomes_by_label, looks)))
    return tuple(claims)
