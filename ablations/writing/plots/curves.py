"""Accuracy over rates of compression: a line a compressor, against what its tokens cost.

against visual tokens     |  against visual and query tokens
against prefill's FLOPs   |  against the time to the first token
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.plots.plotted_rows import (
    compute_row_intervals,
    count_row_tokens,
    count_visual_tokens,
    find_distinct_rows,
    scale_token_axis,
)
from experiments.figures import labels
from experiments.figures.style import GREY, escape_dollars, strip_axes

# what says in a label at which rate a row is: "sap at 36" in a table, "sap sap.rate=2" in a plain sweep
RATE_WORDS = re.compile(r" at \d+$| (\S+)\.(?:rate|tokens|num_queries)=\S+| evaluate\.scale=\S+")
FEW_COLOURS = matplotlib.colormaps["tab10"]
MANY_COLOURS = matplotlib.colormaps["tab20"]
MARKERS = "osD^v<>pXP"
PANEL_INCHES = (4.0, 3.1)
LEGEND_INCHES = 1.7
HEAD_INCHES = 0.4
BAND_OPACITY = 0.13


class Curve(NamedTuple):
    """Rows of one compressor, with the same query module, that with the fewest tokens first."""

    name: str
    rows: list[ReportRow]


class PointStyle(NamedTuple):
    """How a compressor's points look."""

    colour: Any
    marker: str


class Panel(NamedTuple):
    """What accuracy is drawn against. `cost`: of a row, NaN where it was not measured."""

    words: str
    cost: Callable[[ReportRow], float]
    counts_tokens: bool


def count_prefill_megaflops(row: ReportRow) -> float:
    """Operations of a prefill, in millions."""
    return row.efficiency.get("prefill_flops", math.nan) / 1e6


def read_ttft(row: ReportRow) -> float:
    """Milliseconds to the first token."""
    return row.efficiency.get("ttft_ms", math.nan)


PANELS = (
    Panel("visual tokens", count_visual_tokens, counts_tokens=True),
    Panel("visual + query tokens", count_row_tokens, counts_tokens=True),
    Panel("MFLOP of a prefill", count_prefill_megaflops, counts_tokens=False),
    Panel("ms to the first token", read_ttft, counts_tokens=False),
)


def name_curve(label: str) -> str:
    """A row's label without its rate. How many query tokens a query module has is no rate: they are beside
    the visual tokens."""
    _, _, query_module = label.partition(" ")[0].partition("+")

    def leave_out(words: re.Match[str]) -> str:
        return words[0] if query_module and words[1] == query_module else ""

    return RATE_WORDS.sub(leave_out, label)


def find_curves(table: ReportTable) -> list[Curve]:
    """What the table has at several rates, nothing where that is a single compressor. In the order of their
    accuracy where they have the fewest tokens, the best first."""
    rows_by_name: dict[str, list[ReportRow]] = {}
    for row in find_distinct_rows(table):
        name = name_curve(row.label)
        if name != row.label:
            rows_by_name.setdefault(name, []).append(row)
    curves = []
    for name, rows in rows_by_name.items():
        if len({count_visual_tokens(row) for row in rows}) > 1:
            curves.append(Curve(name, sorted(rows, key=count_visual_tokens)))
    if len(curves) < 2:
        return []
    return sorted(curves, key=lambda curve: -float(np.mean(table.compute_accuracies(curve.rows[0]))))


def name_compressor(curve_name: str) -> str:
    """A curve's name without its query module."""
    return curve_name.partition("+")[0]


def pick_styles(curves: Sequence[Curve]) -> dict[str, PointStyle]:
    """A colour and a marker for each compressor that has curves."""
    compressors = list(dict.fromkeys(name_compressor(curve.name) for curve in curves))
    colours = FEW_COLOURS if len(compressors) <= FEW_COLOURS.N else MANY_COLOURS
    styles = {}
    for number, compressor in enumerate(compressors):
        styles[compressor] = PointStyle(colours(number % colours.N), MARKERS[number % len(MARKERS)])
    return styles


def split_at_gaps(table: ReportTable, curve: Curve) -> list[list[ReportRow]]:
    """A curve's rows in pieces that a line may join: not where the table has a row between two of them that
    has no results yet, which would seem to lie on the line."""
    labels_in_order = [row.label for row in table.rows if name_curve(row.label) == curve.name]
    missing = {row.label for row in table.rows if not row.outcomes}
    pieces = [curve.rows[:1]]
    for row, next_row in zip(curve.rows, curve.rows[1:]):
        start, end = sorted(labels_in_order.index(each.label) for each in (row, next_row))
        if missing.isdisjoint(labels_in_order[start:end]):
            pieces[-1].append(next_row)
        else:
            pieces.append([next_row])
    return pieces


def draw_curves(table: ReportTable) -> Figure | None:
    """A panel for each cost that all rows have, with bands over seeds, and points for rows that have one
    rate alone. None where fewer than two compressors have several rates."""
    curves = find_curves(table)
    if not curves:
        return None
    curve_rows = [row for curve in curves for row in curve.rows]
    curve_labels = {row.label for row in curve_rows}
    single_rows = [row for row in find_distinct_rows(table) if row.label not in curve_labels]
    panels = pick_panels([*curve_rows, *single_rows])

    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)  # rounded up
    width = columns * PANEL_INCHES[0] + LEGEND_INCHES
    height = lines * PANEL_INCHES[1] + HEAD_INCHES
    figure = Figure((width, height))
    # fixed, so that names can be placed before drawing
    figure.subplots_adjust(
        left=0.55 / width,
        right=1 - LEGEND_INCHES / width,
        bottom=0.5 / height,
        top=1 - HEAD_INCHES / height,
        wspace=0.16,
        hspace=0.3,
    )
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(lines, columns, number)
        draw_panel(axes, panel, table, curves, single_rows)
        if number % columns == 1 or columns == 1:
            axes.set_ylabel("accuracy in %", fontsize=9)
    handles, _ = figure.axes[0].get_legend_handles_labels()
    if any("+" in curve.name for curve in curves):
        handles.append(Line2D([], [], color="#444", linestyle="--", linewidth=1.3, label="with query module"))
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1 - (LEGEND_INCHES - 0.1) / width, 1 - HEAD_INCHES / height),
        fontsize=8,
        frameon=False,
        borderaxespad=0,
    )
    title = f"{table.heading}: accuracy over rates of compression; bands: 95 % over seeds"
    figure.text(0.55 / width, 1 - 0.25 / height, escape_dollars(title), fontsize=10)
    return figure


def pick_panels(rows: Sequence[ReportRow]) -> list[Panel]:
    """Those whose cost all rows have, and that of query tokens where a row has some."""
    panels = []
    for panel in PANELS:
        if panel.cost is count_row_tokens and not any(row.efficiency.get("query_tokens") for row in rows):
            continue
        if all(math.isfinite(panel.cost(row)) for row in rows):
            panels.append(panel)
    return panels


def draw_panel(
    axes: Axes,
    panel: Panel,
    table: ReportTable,
    curves: Sequence[Curve],
    single_rows: Sequence[ReportRow],
) -> None:
    """Lines and their bands; dashed with a query module, in the colour of the compressor without it, which
    points of a single rate have, too."""
    styles = pick_styles(curves)
    all_costs: list[float] = []
    for curve in curves:
        colour, marker = styles[name_compressor(curve.name)]
        label = escape_dollars(curve.name)
        for rows in split_at_gaps(table, curve):
            costs = [panel.cost(row) for row in rows]
            means, halves = compute_row_intervals(table, rows)
            axes.plot(
                costs,
                means,
                color=colour,
                linestyle="--" if "+" in curve.name else "-",
                marker=marker,
                markersize=3.5,
                linewidth=1.3,
                label=label,
            )
            low, high = np.maximum(means - halves, 0), np.minimum(means + halves, 100)
            if len(rows) == 1:
                axes.plot(costs * 2, [*low, *high], color=colour, linewidth=1)
            else:
                axes.fill_between(costs, low, high, color=colour, alpha=BAND_OPACITY, linewidth=0)
            all_costs += costs
            label = "_nolegend_"
    single_costs = np.array([panel.cost(row) for row in single_rows])
    all_costs += list(single_costs)
    if panel.counts_tokens:
        costs_of_all = np.array(all_costs)
        scale_token_axis(axes, costs_of_all)
        axes.set_xlim(costs_of_all.min() / 1.15, costs_of_all.max() * 1.15)  # no names to the right
    axes.set_xlabel(panel.words, fontsize=9)
    strip_axes(axes, "both")
    if single_rows:
        means, halves = compute_row_intervals(table, single_rows)
        curve_lines = list(axes.lines)
        for row, cost, mean, half in zip(single_rows, single_costs, means, halves):
            compressor = name_compressor(name_curve(row.label))
            colour, marker = styles.get(compressor, PointStyle(GREY, "o"))
            axes.errorbar(cost, mean, half, fmt=marker, color=colour, markersize=4, elinewidth=1)
        axes.set_ylim(axes.get_ylim())  # names are placed in limits that stay
        line_boxes = labels.cover_lines(axes, curve_lines)
        names = [row.label for row in single_rows]
        labels.annotate_points(axes, names, single_costs, means, halves, busy=line_boxes)
