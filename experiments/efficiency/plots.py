"""Pictures of a result: FLOPs and time by part, first token against visual tokens, memory; training steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.efficiency.collect import ANY_PICTURE, EfficiencyRow
from experiments.efficiency.measuring import PICTURE_PREPARATION
from experiments.efficiency.row_numbers import (
    GIB,
    MIB,
    SHORT_PART_NAMES,
    choose_unit,
    list_differing_keys,
    list_parts_of_rows,
    sum_flops,
)
from experiments.efficiency.subject import COMPRESSOR, LLM, PROJECTOR, QUERY_PART, TOWER
from experiments.efficiency.timing import OTHER_PART
from experiments.figures import labels
from experiments.figures.style import BLUE, GREY, ORANGE, POINT_STYLE, escape_dollars, render_svg, strip_axes

STAGE_COLOURS = {"pretrain": ORANGE, "finetune": BLUE}
PART_COLOURS = {
    PICTURE_PREPARATION: "#c9ccd2",
    TOWER: GREY,
    COMPRESSOR: ORANGE,
    PROJECTOR: "#e3b341",
    QUERY_PART: "#b3261e",
    LLM: BLUE,
    OTHER_PART: "#6b4c9a",
}
FIGURE_INCHES = 8.4  # width of figures with bars
MARGIN_INCHES = 1.3  # above and below the bars: legend, axis
ROW_INCHES = 0.3  # a row takes
BAR_HEIGHT = 0.7  # of a row


def draw_result_pictures(
    rows: Sequence[EfficiencyRow], steps: Sequence[EfficiencyRow] = ()
) -> dict[str, str]:
    """SVG by name; `steps` are of training."""
    pictures = {}
    if steps:
        pictures["training"] = draw_training_bars(steps)
    if not rows:
        return pictures
    unit = choose_unit(max(map(sum_flops, rows)))
    heading = f"{unit.letter}FLOPs of a prefill"
    pictures["flops"] = draw_stacked_parts(rows, "counts", "prefill", unit.scale, heading)
    measured_rows = [row for row in rows if row["measured"]]
    if measured_rows:
        heading = "ms from pictures to the first token"
        pictures["time"] = draw_stacked_parts(measured_rows, "measured", "parts", 1e-3, heading)
        # one batch: a larger one is later without being slower
        smallest_batch = min(row["batch"] for row in measured_rows)
        rows_of_batch = [row for row in measured_rows if row["batch"] == smallest_batch]
        pictures["ttft"] = draw_ttft_by_tokens(rows_of_batch)
    pictures["memory"] = draw_memory_bars(rows)
    return pictures


def name_row(row: EfficiencyRow, rows: Sequence[EfficiencyRow]) -> str:
    """Label and what tells it from others of the label: FlashSloth, 768x768, batch 8."""
    words = [row["label"]]
    for key in list_differing_keys(rows):
        if key != "picture":
            words.append(f"{key} {row[key]}")
        elif row[key] != ANY_PICTURE:
            words.append(row[key])
    return ", ".join(words)


def make_bar_axes(rows: Sequence[EfficiencyRow], heading: str) -> tuple[Figure, Axes]:
    """Horizontal axes with a line for each row."""
    figure = Figure((FIGURE_INCHES, MARGIN_INCHES + ROW_INCHES * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(rows)), [escape_dollars(name_row(row, rows)) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.set_xlabel(heading, fontsize=9)
    strip_axes(axes, "x")
    return figure, axes


def draw_bar_legend(axes: Axes) -> None:
    """In one line above the bars."""
    axes.legend(
        fontsize=8,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=7,
        borderaxespad=0.2,
        handlelength=1,
        columnspacing=1.2,
    )


def draw_stacked_parts(
    rows: Sequence[EfficiencyRow], where: str, inner: str, scale: float, heading: str
) -> str:
    """Bars of numbers by part, row[where][inner]; of a measurement the medians."""
    figure, axes = make_bar_axes(rows, heading)
    places = range(len(rows))
    start = np.zeros(len(rows))  # where a row's next part begins
    for part in list_parts_of_rows(rows, where, inner):
        numbers = []
        for row in rows:
            value = row[where][inner].get(part, 0)
            if isinstance(value, (list, tuple)):  # a spread: median, lowest, highest
                value, _, _ = value
            numbers.append(value)
        widths = np.array(numbers) / scale
        name = SHORT_PART_NAMES[part]
        axes.barh(places, widths, BAR_HEIGHT, left=start, color=PART_COLOURS[part], label=name)
        start += widths
    draw_bar_legend(axes)
    return render_svg(figure)


def draw_ttft_by_tokens(rows: Sequence[EfficiencyRow]) -> str:
    """First token against visual tokens of a row; lines from the lowest to the highest round."""
    figure = Figure((7.6, 4.2))
    axes = figure.add_axes((0.09, 0.12, 0.89, 0.85))  # fixed, so that labels can be placed before drawing
    visual = collect_counts(rows, "visual")
    spreads = np.array([row["measured"]["ttft"] for row in rows])  # (rows, 3), in seconds
    middle, low, high = 1e3 * spreads.T
    for number, row in enumerate(rows):
        axes.errorbar(
            visual[number],
            middle[number],
            [[middle[number] - low[number]], [high[number] - middle[number]]],
            color=ORANGE if row["counts"]["query"] else BLUE,
            **POINT_STYLE,
        )
    axes.set_xlabel("visual tokens of a row", fontsize=9)
    axes.set_ylabel("ms to the first token; orange: with query tokens", fontsize=9)
    if all(visual):
        scale_logarithmically(axes)
        axes.set_xlim(min(visual) / 1.2, max(visual) * 2)
        axes.set_ylim(min(low) / 1.2, max(high) * 1.2)
    else:  # blind rows, of no visual token, have no place on logarithmic axes
        axes.set_xlim(0, 1.3 * max(visual) + 1)  # room for labels
        axes.set_ylim(0, 1.05 * max(high))
    names = [name_row(row, rows) for row in rows]
    # labels keep clear of the error bars, too
    labels.annotate_points(axes, names, visual, middle, np.maximum(high - middle, middle - low))
    strip_axes(axes, "both")
    return render_svg(figure)


def scale_logarithmically(axes: Axes) -> None:
    """Both axes, with ticks at 1, 2, 5, 10 as plain numbers."""
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:,.0f}")
        # matplotlib would label minor ticks where the axis is short, between ours
        axis.set_minor_formatter(NullFormatter())


def collect_counts(rows: Sequence[EfficiencyRow], name: str) -> np.ndarray:
    """What was counted under a name, (rows,)."""
    return np.array([row["counts"][name] for row in rows])


def draw_memory_bars(rows: Sequence[EfficiencyRow]) -> str:
    """Weights, KV cache and, where measured, what else an answer takes at its peak."""
    weight_bytes = collect_counts(rows, "weight_bytes")
    scale, unit = MIB, "MiB"
    if weight_bytes.max() > GIB / 2:
        scale, unit = GIB, "GiB"
    peak_bytes = np.zeros(len(rows))
    for number, row in enumerate(rows):
        if row["measured"]:
            peak_bytes[number] = row["measured"]["peak_bytes"]
    weights = weight_bytes / scale
    cache = collect_counts(rows, "cache_bytes") / scale
    peak = peak_bytes / scale
    figure, axes = make_bar_axes(rows, unit)
    places = range(len(rows))
    axes.barh(places, weights, BAR_HEIGHT, color=GREY, label="weights")
    axes.barh(places, cache, BAR_HEIGHT, left=weights, color=ORANGE, label="KV cache after the prefill")
    if peak.any():
        remainder = np.maximum(peak - weights - cache, 0)
        axes.barh(places, remainder, BAR_HEIGHT, left=weights + cache, color=BLUE, label="else, at the peak")
    draw_bar_legend(axes)
    return render_svg(figure)


def draw_training_bars(rows: Sequence[EfficiencyRow]) -> str:
    """Of a training step: time of a row of data with its spread, and peak memory; a bar a cell and stage."""
    cells = []  # their labels; a cell has a row for each stage
    for row in rows:
        if row["label"] not in cells:
            cells.append(row["label"])
    stages = len(STAGE_COLOURS)
    figure_height = MARGIN_INCHES + ROW_INCHES * stages * len(cells)
    figure = Figure((FIGURE_INCHES, figure_height), layout="constrained")
    times, peaks = figure.subplots(1, 2, sharey=True)
    distance = 0.8 / stages  # between the bars of a cell
    for number, (stage, colour) in enumerate(STAGE_COLOURS.items()):
        stage_rows = [row for row in rows if row["stage"] == stage]
        shift = (number - (stages - 1) / 2) * distance
        places = []
        row_ms = []  # of each cell: median, lowest, highest
        peak_gib = []
        for row in stage_rows:
            places.append(cells.index(row["label"]) + shift)
            row_ms.append(1e3 * np.array(row["seconds"]) / row["rows"])
            peak_gib.append(row["peak_bytes"] / GIB)
        middle, low, high = np.array(row_ms).T
        times.barh(
            places,
            middle,
            0.9 * distance,
            color=colour,
            label=stage,
            xerr=(middle - low, high - middle),
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        peaks.barh(places, peak_gib, 0.9 * distance, color=colour)
    times.set_yticks(range(len(cells)), map(escape_dollars, cells))
    times.set_ylim(len(cells) - 0.4, -0.6)  # the first cell on top
    times.set_xlabel("ms a row of data", fontsize=9)
    peaks.set_xlabel("peak GiB", fontsize=9)
    for axes in (times, peaks):
        strip_axes(axes, "x")
    draw_bar_legend(times)
    return render_svg(figure)
