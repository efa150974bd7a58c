"""Accuracy against tokens: a point a row, and the front of those that nothing cheaper beats."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ablations.outcomes import ReportTable
from ablations.writing.plots.curves import find_curves
from ablations.writing.plots.plotted_rows import (
    LEGEND_STYLE,
    compute_row_intervals,
    count_row_tokens,
    find_distinct_rows,
    is_crowded,
    pick_row_colour,
    scale_token_axis,
)
from experiments.figures import labels
from experiments.figures.style import BLUE, GREY, ORANGE, POINT_STYLE, escape_dollars, strip_axes

MAX_NAMED_ROWS = 24  # of more rows not all can have a name in a plot


def draw_pareto(table: ReportTable) -> Figure | None:
    """Accuracy against visual and query tokens; what nothing cheaper beats is joined. None if all cost the
    same, or too many do, and where the rows are shown as curves."""
    rows = find_distinct_rows(table)
    tokens = np.array([count_row_tokens(row) for row in rows])  # (rows,)
    if len(set(tokens)) < 2 or is_crowded(table) or find_curves(table):
        return None
    means, half = compute_row_intervals(table, rows)
    half = np.minimum(half, [means, 100 - means])  # below and above: two seeds' interval can leave the scale

    height = max(3.6, 0.16 * len(rows) + 2.2)  # inches: room for the names
    figure = Figure((7.6, height))
    axes = figure.add_axes((0.08, 0.12, 0.9, 0.78))  # fixed, so that labels can be placed before drawing
    colours = np.array(list(map(pick_row_colour, rows)))  # (rows,)
    for colour, word in ((ORANGE, "with query tokens"), (BLUE, "without")):
        chosen = colours == colour
        axes.errorbar(
            tokens[chosen],
            means[chosen],
            half[:, chosen],
            color=colour,
            label=word,
            **POINT_STYLE,
        )
    front = find_pareto_front(tokens, means)
    axes.plot(
        tokens[front],
        means[front],
        color=GREY,
        linewidth=1,
        linestyle="--",
        zorder=0,  # behind the points
        label="Pareto front",
    )
    scale_token_axis(axes, tokens)
    named_rows = None
    if len(rows) > MAX_NAMED_ROWS:
        named_rows = pick_named_rows(tokens, means, front)
    names = [row.label for row in rows]
    # when the limits are final: it asks where points lie
    labels.annotate_points(axes, names, tokens, means, half.max(0), named_rows)
    axes.set_xlabel("visual tokens of an image + query tokens", fontsize=9)
    axes.set_ylabel("accuracy in %", fontsize=9)
    title = f"{table.heading}: accuracy against tokens"
    axes.set_title(escape_dollars(title), fontsize=10, loc="left")
    axes.legend(**LEGEND_STYLE)
    strip_axes(axes, "y")
    return figure


def find_pareto_front(tokens: NDArray, means: NDArray) -> list[int]:
    """Numbers of the rows that nothing as cheap or cheaper beats, the cheapest first."""
    front = []
    for row in np.lexsort((-means, tokens)):
        affordable = tokens <= tokens[row]  # itself among them
        if means[row] == means[affordable].max():
            front.append(int(row))
    return front


def pick_named_rows(tokens: NDArray, means: NDArray, front: Sequence[int]) -> list[int]:
    """Which of a crowd of rows have names: the front, and the lowest at each number of tokens."""
    named_rows = list(front)
    for count in sorted(set(tokens)):
        alike = np.flatnonzero(tokens == count)
        lowest = alike[np.argmin(means[alike])]
        named_rows.append(int(lowest))
    return list(dict.fromkeys(named_rows))
