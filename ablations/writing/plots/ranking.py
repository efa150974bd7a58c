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
from ablations.writing.grids.gains_grid import find_usual_module, split_label
from ablations.writing.plots.intervals import REPORT_ROW_INCHES
from ablations.writing.plots.plotted_rows import (
    LEGEND_STYLE,
    count_row_tokens,
    find_distinct_rows,
    is_crowded,
    pick_row_colour,
)
from experiments.figures.style import BLUE, GREY, ORANGE, POINT_STYLE, escape_dollars, strip_axes

COLOUR_LABELS = {BLUE: "without query tokens", ORANGE: "with", GREY: "no image"}
TWIN_DISTANCE = 0.3  # lines between a row without and one with the query module
# a row with the query module stands a little below the one without, so that both can be seen
COLOUR_SHIFTS = {BLUE: -TWIN_DISTANCE / 2, ORANGE: TWIN_DISTANCE / 2, GREY: 0}


def group_by_compressor(table: ReportTable) -> dict[str, list[ReportRow]]:
    """Rows by the compressor that they have in common: NAME and NAME+MODULE, the best first. A row
    NAME+MODULE WORDS is a line of its own, NAME WORDS; so is one whose module few rows have."""
    rows = find_distinct_rows(table)
    for row in table.rows:
        if row.outcomes and not row.efficiency.get("visual_tokens"):  # blind
            rows.append(row)
    names = {row.label for row in rows}
    usual_module = find_usual_module(row.label for row in table.rows)
    groups: dict[str, list[ReportRow]] = {}
    for row in rows:
        compressor, module, words = split_label(row.label)
        name = row.label
        if module == usual_module and compressor in names:
            name = compressor + words
        groups.setdefault(name, []).append(row)

    def score_best_row(compressor: str) -> float:
        return max(float(np.mean(table.compute_accuracies(row))) for row in groups[compressor])

    ranking = sorted(groups, key=score_best_row, reverse=True)
    return {compressor: groups[compressor] for compressor in ranking}


def is_shown_nowhere(table: ReportTable) -> bool:
    """Whether rows have neither families of questions nor numbers of tokens that a plot could show."""
    rows = find_distinct_rows(table)
    return len(rows) > 1 and not table.family_names and len(set(map(count_row_tokens, rows))) == 1


def draw_ranking(table: ReportTable) -> Figure | None:
    """A line a compressor, the best first, without and with the query module. None where another plot shows
    the rows."""
    if not (is_crowded(table) or is_shown_nowhere(table)):
        return None
    groups = group_by_compressor(table)
    height = 1.3 + REPORT_ROW_INCHES * len(groups)
    figure = Figure((7.0, height), layout="constrained")
    axes = figure.subplots()
    drawn_colours: set[str] = set()
    for place, rows in enumerate(groups.values()):
        for row in rows:
            draw_row_point(axes, table, row, place)
            drawn_colours.add(pick_row_colour(row))
    axes.set_yticks(range(len(groups)), list(map(escape_dollars, groups)))
    axes.set_ylim(len(groups) - 0.5, -0.5)  # the best at the top
    axes.set_xlabel("accuracy in %; bars: 95 % t-interval over seeds; open: one seed", fontsize=9)
    # above the legend, which begins far to the left where names are long
    title = escape_dollars(f"{table.heading}: accuracy by compressor")
    figure.suptitle(title, fontsize=10, x=0.01, horizontalalignment="left")
    handles = []
    for colour, word in COLOUR_LABELS.items():
        if colour in drawn_colours:
            point = Line2D([], [], color=colour, marker="o", linestyle="", markersize=5, label=word)
            handles.append(point)
    axes.legend(handles=handles, **LEGEND_STYLE)
    strip_axes(axes, "x")
    return figure


def draw_row_point(axes: Axes, table: ReportTable, row: ReportRow, place: int) -> None:
    """A row's mean and interval; that with the query module a little lower."""
    mean, half = compute_seed_interval(table.compute_accuracies(row))
    colour = pick_row_colour(row)
    if math.isnan(half):
        low = high = 0.0
        face = "white"
    else:
        # two seeds' interval can leave the scale
        low = min(half, mean)
        high = min(half, 100 - mean)
        face = colour
    axes.errorbar(
        mean,
        place + COLOUR_SHIFTS[colour],
        xerr=[[low], [high]],
        color=colour,
        markerfacecolor=face,
        **POINT_STYLE,
    )
