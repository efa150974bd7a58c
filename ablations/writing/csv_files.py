"""Scores and claims as CSV, for programs."""

import math
from collections.abc import Mapping, Sequence

from ablations.claims.statistics import RowComparison, compute_seed_interval
from ablations.claims.verdicts import Verdict
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.writing.grids.scores_grid import EFFICIENCY_COLUMNS
from experiments.runtime.text_tables import (
    format_csv,
)
from experiments.sweep.score_table import name_family_column

EFFICIENCY_KEYS = [column.key for column in EFFICIENCY_COLUMNS]
SPREAD_KEYS = ("ttft_ms_low", "ttft_ms_high")  # in scores.csv alone
CLAIMS_HEADER = (
    "table",
    "claim",
    "row",
    "other",
    "points",
    "families",
    "difference",
    "low",
    "high",
    "own_low",
    "own_high",
    "seeds",
    "verdict",
    "note",
    "source",
    "looks",
    "corrected",
)


def render_scores_csv(report: Report) -> str:
    """Every mean with half its interval, one line a row, for programs."""
    family_names: set[str] = set()
    for table in report.tables:
        family_names.update(table.family_names)
    families = sorted(family_names)
    efficiency_keys = [*EFFICIENCY_KEYS, *SPREAD_KEYS]
    leading_columns = ["table", "block", "row", "seeds", "questions"]
    accuracy_columns = ["overall", "overall_pm"]
    for family in families:
        name = name_family_column(family, [*leading_columns, *accuracy_columns, *efficiency_keys, "ours"])
        accuracy_columns += [name, f"{name}_pm"]
    lines: list[list[object]] = [[*leading_columns, *accuracy_columns, *efficiency_keys, "ours"]]
    for table in report.tables:
        for row in table.rows:
            line: list[object] = [table.name, row.block, row.label, len(row.outcomes), len(table.ids)]
            line += list_accuracies(table, row, families)
            for key in efficiency_keys:
                line.append(row.efficiency.get(key, ""))
            lines.append([*line, row.ours or row.absent])
    return format_csv(lines)


def list_accuracies(table: ReportTable, row: ReportRow, families: Sequence[str]) -> list[str]:
    """Mean and half its interval, of all questions and of each family; empty where a row has none."""
    numbers = []
    for family in (None, *families):
        mean = half = math.nan
        if row.outcomes and (family is None or family in table.family_names):
            mean, half = compute_seed_interval(table.compute_accuracies(row, family))
        numbers += [format_csv_number(mean), format_csv_number(half)]
    return numbers


def format_csv_number(value: float) -> str:
    """Four digits after the point; nothing for nan."""
    return "" if math.isnan(value) else f"{value:.4f}"


def render_claims_csv(tables: Sequence[ReportTable], verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    """Every claim and every pair, one line each."""
    lines: list[list[object]] = [[*CLAIMS_HEADER]]
    for table in tables:
        for verdict in verdicts[table.name]:
            claim = verdict.claim
            limits = [claim.points, " ".join(claim.families)]
            numbers = format_interval_numbers(verdict)
            looks = " ".join(map(format_look, claim.looks))
            outcome = [verdict.word, verdict.note, claim.source, looks, verdict.corrected_word]
            # a claim is of no single pair: row, other and seeds are empty
            lines.append([table.name, claim.text, "", "", *limits, *numbers, "", *outcome])
            for pair in verdict.pairs:
                names = [table.name, claim.text, pair.row, pair.other]
                numbers = format_interval_numbers(pair)
                lines.append([*names, *limits, *numbers, len(pair.seeds), "", "", claim.source, "", ""])
    return format_csv(lines)


def format_look(seeds_by_pair: Sequence[int]) -> str:
    """The seeds of a claim's pairs: one number where all had as many."""
    numbers = list(map(str, seeds_by_pair))
    return numbers[0] if len(set(numbers)) == 1 else "/".join(numbers)


def format_interval_numbers(judged: Verdict | RowComparison) -> list[str]:
    """Estimate and interval of a verdict or pair, and the interval from its own seeds alone."""
    ends = (judged.low, judged.high, judged.own_low, judged.own_high)
    return list(map(format_csv_number, (judged.estimate, *ends)))
