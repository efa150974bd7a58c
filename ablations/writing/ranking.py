"""Accuracy of compressors that all have about the same budget, as a ranking: where `pareto` would be a heap.

identity                        o
ldp                   o  o          without and with the query module, in one line
sap                  o o            open: one seed, so that nothing is known of the spread
"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.claims.statistics import compute_seed_interval
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.plots import REPORT_ROW_INCHES, find_distinct_rows, is_crowded
from experiments.figures.style import BLUE, GREY, ORANGE, escape_dollars, render_svg, strip_axes

COLOUR_LABELS = {BLUE: "without query tokens", ORANGE: "with", GREY: "no image"}
TWIN_DISTANCE = 0.3  # lines between a row without and one with the query module


def group_by_compressor(table: ReportTable) -> dict[str, list[ReportRow]]:
    """Rows by the compressor that they have in common: NAME and NAME+MODULE, the best first."""
    blind = [row for row in table.rows if row.outcomes and not row.efficiency.get("visual_tokens")]
    rows, found = [*find_distinct_rows(table), *blind], {}
    names = {row.label for row in rows}
    for row in rows:
        host = row.label.rpartition("+")[0]
        found.setdefault(host if host in names else row.label, []).append(row)
    return dict(
        sorted(
            found.items(), key=lambda pair: -max(np.mean(table.compute_accuracies(row)) for row in pair[1])
        )
    )


def draw_ranking(table: ReportTable) -> str | None:
    """A line a compressor, the best first, without and with the query module. None where `pareto` is."""
    if not is_crowded(table):
        return None
    found = group_by_compressor(table)
    figure = Figure((7.0, 1.3 + REPORT_ROW_INCHES * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, rows in enumerate(found.values()):
        for row in rows:
            draw_row_point(axes, table, row, place)
    axes.set_yticks(range(len(found)), map(escape_dollars, found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("accuracy in %; bars: 95 % t-interval over seeds; open: one seed", fontsize=9)
    axes.set_title(escape_dollars(f"{table.heading}: accuracy by compressor"), fontsize=10, loc="left")
    used = {pick_row_colour(row) for rows in found.values() for row in rows}
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", markersize=5, label=word)
        for colour, word in COLOUR_LABELS.items()
        if colour in used
    ]
    axes.legend(
        handles=handles,
        fontsize=8,
        frameon=False,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        ncols=3,
        borderaxespad=0.2,
    )
    strip_axes(axes, "x")
    return render_svg(figure)


def pick_row_colour(row: ReportRow) -> str:
    """A row's colour."""
    if row.efficiency.get("query_tokens"):
        return ORANGE
    return BLUE if row.efficiency.get("visual_tokens") else GREY


def draw_row_point(axes: Axes, table: ReportTable, row: ReportRow, place: int) -> None:
    """A row's mean and interval; that with the query module a little lower."""
    mean, half = compute_seed_interval(table.compute_accuracies(row))
    colour = pick_row_colour(row)
    y = place + {ORANGE: TWIN_DISTANCE / 2, BLUE: -TWIN_DISTANCE / 2, GREY: 0}[colour]
    one = math.isnan(half)
    low, high = (0, 0) if one else (min(half, mean), min(half, 100 - mean))
    axes.errorbar(
        mean,
        y,
        xerr=[[low], [high]],
        fmt="o",
        color=colour,
        markersize=5,
        elinewidth=1,
        capsize=2,
        markerfacecolor="white" if one else colour,
    )
