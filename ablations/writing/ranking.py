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

from ablations.claims.statistics import seed_interval
from ablations.outcomes import Row, Table
from ablations.writing.plots import LINE, crowded, seen
from experiments.figures.style import BLUE, GREY, ORANGE, escape_dollars, render_svg, strip_axes

NAMES = {BLUE: "without query tokens", ORANGE: "with", GREY: "no image"}
APART = 0.3  # lines between a row without and one with the query module


def hosts(table: Table) -> dict[str, list[Row]]:
    """Rows by the compressor that they have in common: NAME and NAME+MODULE, the best first."""
    blind = [row for row in table.rows if row.outcomes and not row.efficiency.get("visual_tokens")]
    rows, found = [*seen(table), *blind], {}
    names = {row.label for row in rows}
    for row in rows:
        host = row.label.rpartition("+")[0]
        found.setdefault(host if host in names else row.label, []).append(row)
    return dict(sorted(found.items(), key=lambda pair: -max(np.mean(table.scores(row)) for row in pair[1])))


def ranking(table: Table) -> str | None:
    """A line a compressor, the best first, without and with the query module. None where `pareto` is."""
    if not crowded(table):
        return None
    found = hosts(table)
    figure = Figure((7.0, 1.3 + LINE * len(found)), layout="constrained")
    axes = figure.subplots()
    for place, rows in enumerate(found.values()):
        for row in rows:
            point(axes, table, row, place)
    axes.set_yticks(range(len(found)), map(escape_dollars, found))
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlabel("accuracy in %; bars: 95 % t-interval over seeds; open: one seed", fontsize=9)
    axes.set_title(escape_dollars(f"{table.heading}: accuracy by compressor"), fontsize=10, loc="left")
    used = {kind(row) for rows in found.values() for row in rows}
    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="", markersize=5, label=word)
        for colour, word in NAMES.items()
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


def kind(row: Row) -> str:
    """A row's colour."""
    if row.efficiency.get("query_tokens"):
        return ORANGE
    return BLUE if row.efficiency.get("visual_tokens") else GREY


def point(axes: Axes, table: Table, row: Row, place: int) -> None:
    """A row's mean and interval; that with the query module a little lower."""
    mean, half = seed_interval(table.scores(row))
    colour = kind(row)
    y = place + {ORANGE: APART / 2, BLUE: -APART / 2, GREY: 0}[colour]
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
