"""Rows as points of a picture: what they cost, how accurate they are, and the axis of their tokens."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ablations.claims.statistics import compute_seed_interval
from ablations.outcomes import ReportRow, ReportTable
from experiments.figures.style import BLUE, GREY, ORANGE

MAX_ALIKE_ROWS = 6  # more rows with one number of tokens cannot be told apart on a line
# in the corner above the axes, where no point is
LEGEND_STYLE: dict[str, Any] = {
    "fontsize": 8,
    "frameon": False,
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "ncols": 3,
    "borderaxespad": 0.2,
}


def find_distinct_rows(table: ReportTable) -> list[ReportRow]:
    """Rows with results and visual tokens, those of the same cells once: a table may name a configuration in
    several blocks. Rows of other cells are other points, also where all their answers are equal."""
    distinct_rows: dict[tuple[object, ...], ReportRow] = {}
    for number, row in enumerate(table.rows):
        if row.outcomes and row.efficiency.get("visual_tokens"):
            cells: tuple[object, ...] = tuple(sorted(row.keys.items()))
            # a report of an earlier version has no keys
            distinct_rows.setdefault(cells or (number,), row)
    return list(distinct_rows.values())


def count_visual_tokens(row: ReportRow) -> float:
    """Of an image, on average where images differ or a pruner drops some on its way through the layers."""
    return row.efficiency.get("average_visual_tokens") or row.efficiency["visual_tokens"]


def count_row_tokens(row: ReportRow) -> float:
    """Of an image and a question's queries: what the LLM reads beside the text."""
    return count_visual_tokens(row) + row.efficiency.get("query_tokens", 0)


def is_crowded(table: ReportTable) -> bool:
    """Whether so many compressors have one number of tokens that a ranking shows them better. Compressors
    are what has a row NAME beside a row NAME+MODULE."""
    rows = find_distinct_rows(table)
    compressors = {row.label for row in rows}
    alike_rows = Counter(map(count_row_tokens, rows))  # number of tokens -> of rows
    for row in rows:
        if row.label.rpartition("+")[0] in compressors:
            return max(alike_rows.values()) > MAX_ALIKE_ROWS
    return False


def pick_row_colour(row: ReportRow) -> str:
    """A row's colour: with query tokens, without, without any image."""
    if row.efficiency.get("query_tokens"):
        return ORANGE
    return BLUE if row.efficiency.get("visual_tokens") else GREY


def compute_row_intervals(
    table: ReportTable, rows: Sequence[ReportRow], family: str | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows,) mean accuracies and (rows,) half their intervals, 0 with one seed."""
    means = []
    halves = []
    for row in rows:
        mean, half = compute_seed_interval(table.compute_accuracies(row, family))
        means.append(mean)
        halves.append(half)
    return np.array(means), np.nan_to_num(halves)


def scale_token_axis(axes: Axes, tokens: NDArray) -> None:
    """A logarithmic axis whose ticks are numbers of tokens that rows have."""
    ticks = thin_out_ticks(sorted(set(tokens)))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(tokens.min() / 1.15, tokens.max() * 1.6)  # names stand to the right of their points


def thin_out_ticks(values: Sequence[float]) -> list[float]:
    """Ascending values without those less than a fifth above the one before."""
    ticks: list[float] = []
    for value in values:
        if not ticks or value >= 1.2 * ticks[-1]:
            ticks.append(value)
    return ticks
