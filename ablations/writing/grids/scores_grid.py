"""A table's scores as a grid of words: a line a row, its accuracies, and what it costs."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ablations.claims.statistics import compute_seed_interval
from ablations.costs.prefill import PREFILL_TEXT_TOKENS
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.grids.number_words import format_amount
from ablations.writing.grids.word_grid import WordGrid

OURS_MARK = "†"
ABSENT_MARK = "‡"
MEASURED_COLUMNS = {"ttft_ms": "TTFT", "peak_memory_mib": "peak memory"}
SCORES_NOTE = (
    "Accuracy in %. ±: half the 95 % t-interval of the mean over seeds; none with one seed. "
    f"Prefill: one image, {PREFILL_TEXT_TOKENS} text tokens, tower included; "
    "a multiply-add is two operations."
)


class EfficiencyColumn(NamedTuple):
    """A column of what a row costs.

    heading       what stands above it
    key           of a row's efficiency
    format_value  how a number is written
    """

    heading: str
    key: str
    format_value: Callable[[float], str]

    def spell(self, row: ReportRow) -> str:
        """The column's words for a row; none where it has no value."""
        value = row.efficiency.get(self.key)
        return "" if value is None else self.format_value(value)


EFFICIENCY_COLUMNS = (
    EfficiencyColumn("visual tokens", "visual_tokens", "{:.0f}".format),
    EfficiencyColumn("left on average over layers", "average_visual_tokens", "{:.1f}".format),
    EfficiencyColumn("query tokens", "query_tokens", "{:.0f}".format),
    EfficiencyColumn("parameters added", "parameters_added", format_amount),
    EfficiencyColumn("prefill FLOPs", "prefill_flops", format_amount),
    EfficiencyColumn("TTFT ms", "ttft_ms", "{:.1f}".format),
    EfficiencyColumn("peak memory MiB", "peak_memory_mib", "{:.0f}".format),
)


def make_scores_grid(table: ReportTable) -> WordGrid:
    """Accuracy and efficiency of a table's rows; the chance row first."""
    columns = find_efficiency_columns(table)
    lines = []
    if table.chance:  # it is of the questions, which a table without finished cells has none of
        lines.append(("", make_chance_line(table, columns)))
    for row in table.rows:
        lines.append((row.block, make_scores_line(table, row, columns)))
    header = ["", "seeds", "overall", *table.family_names]
    for column in columns:
        header.append(column.heading)
    return WordGrid(title_table(table), header, lines, list_table_notes(table))


def title_table(table: ReportTable) -> str:
    """What stands above a table."""
    return f"{table.heading}: {table.title}" if table.title else table.heading


def find_efficiency_columns(table: ReportTable) -> list[EfficiencyColumn]:
    """The efficiency columns of which any row has a value."""
    columns = []
    for column in EFFICIENCY_COLUMNS:
        if any(column.key in row.efficiency for row in table.rows):
            columns.append(column)
    return columns


def make_chance_line(table: ReportTable, columns: Sequence[EfficiencyColumn]) -> list[str]:
    """Accuracy of always giving the most frequent answer; it has no seeds and costs nothing."""
    accuracies = [table.chance["overall"]]
    for family in table.family_names:
        accuracies.append(table.chance["families"].get(family, math.nan))
    words = ["chance", ""]
    for accuracy in accuracies:
        words.append(f"{100 * accuracy:.1f}")  # in %, as all accuracies of a table
    return words + [""] * len(columns)


def make_scores_line(table: ReportTable, row: ReportRow, columns: Sequence[EfficiencyColumn]) -> list[str]:
    """A row's label, seeds, accuracies and costs."""
    label = mark_label(row)
    if row.outcomes:
        words = [label, str(len(row.outcomes)), format_overall(table, row)]
        for family in table.family_names:
            mean, _ = compute_seed_interval(table.compute_accuracies(row, family))
            words.append(f"{mean:.1f}")
    else:
        words = [label, "", name_state(row)] + [""] * len(table.family_names)
    return words + [column.spell(row) for column in columns]


def mark_label(row: ReportRow) -> str:
    """A row's label with the marks of the notes below the table."""
    label = row.label
    if row.ours:
        label += OURS_MARK
    if row.absent:
        label += ABSENT_MARK
    return label


def name_state(row: ReportRow) -> str:
    """What stands in place of the scores that a row does not have."""
    return "cannot be" if row.absent else "missing"


def format_overall(table: ReportTable, row: ReportRow) -> str:
    """Mean, and its ± where there are several seeds."""
    mean, half = compute_seed_interval(table.compute_accuracies(row))
    if math.isnan(half):
        return f"{mean:.1f}"
    return f"{mean:.1f} ±{half:.1f}"


def list_table_notes(table: ReportTable) -> list[str]:
    """Below a table: what is ours, what cannot be, what is missing, what was not measured."""
    labels_by_reason: dict[str, list[str]] = {}
    labels_by_absence: dict[str, list[str]] = {}
    labels_by_missing_seeds: dict[str, list[str]] = {}
    for row in table.rows:
        if row.ours:
            labels_by_reason.setdefault(row.ours, []).append(row.label)
        if row.absent:
            labels_by_absence.setdefault(row.absent, []).append(row.label)
        if row.missing:
            seeds = ", ".join(map(str, row.missing))
            labels_by_missing_seeds.setdefault(seeds, []).append(row.label)
    notes = []
    for reason, labels in labels_by_reason.items():
        notes.append(f"{OURS_MARK} {', '.join(labels)}: {reason}.")
    for reason, labels in labels_by_absence.items():
        notes.append(f"{ABSENT_MARK} {', '.join(labels)}: {reason}.")
    if labels_by_missing_seeds:
        missing_cells = []
        for seeds, labels in labels_by_missing_seeds.items():
            missing_cells.append(f"{', '.join(labels)} (seed {seeds})")
        notes.append(f"Missing: {'; '.join(missing_cells)}; {table.sweep} runs them.")
    if table.left_out:
        notes.append(f"Left out by rows=: {', '.join(table.left_out)}.")
    unmeasured = []
    for key, name in MEASURED_COLUMNS.items():
        if all(key not in row.efficiency for row in table.rows):
            unmeasured.append(name)
    if unmeasured and table.chance:  # without chance there are no cells that could be measured
        notes.append(f"Not measured: {', '.join(unmeasured)}; measure=true measures them.")
    return notes
