"""A picture of each family of questions: bars of the rows' accuracies, and chance."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.plots.intervals import REPORT_ROW_INCHES
from ablations.writing.plots.plotted_rows import compute_row_intervals, pick_row_colour
from experiments.figures.style import escape_dollars, strip_axes


def draw_families(table: ReportTable) -> Figure | None:
    """A panel of bars for each family of questions, a bar a row. None with a single family."""
    rows = [row for row in table.rows if row.outcomes]
    families = table.family_names
    if not rows or not families:
        return None
    width = 1.75 + 1.35 * len(families)  # inches: labels, then a panel each
    height = 1.0 + REPORT_ROW_INCHES * len(rows)
    figure = Figure((width, height), layout="constrained")
    panels = figure.subplots(1, len(families), sharey=True, squeeze=False)[0]
    for axes, family in zip(panels, families):
        draw_family_bars(axes, table, rows, family)
    names = [escape_dollars(row.label) for row in rows]
    panels[0].set_yticks(np.arange(len(rows)), names)
    panels[0].set_ylim(len(rows) - 0.4, -0.6)  # the first at the top
    figure.supxlabel("accuracy in %; dotted: chance", fontsize=9)
    return figure


def draw_family_bars(axes: Axes, table: ReportTable, rows: Sequence[ReportRow], family: str) -> None:
    """A panel: the rows' accuracies on one family, and what chance gives."""
    means, half = compute_row_intervals(table, rows, family)
    axes.barh(
        np.arange(len(rows)),
        means,
        height=0.72,
        xerr=half,
        color=list(map(pick_row_colour, rows)),
        error_kw={"elinewidth": 0.8, "ecolor": "#333"},
    )
    chance = 100 * table.chance["families"].get(family, math.nan)
    axes.axvline(chance, color="#333", linewidth=0.9, linestyle=":")
    axes.set_title(escape_dollars(family), fontsize=9)
    axes.set_xlim(0, 100)
    axes.set_xticks([0, 50, 100])
    strip_axes(axes, "x")
