"""Pictures of a result: FLOPs and time by part, first token against visual tokens, memory; training steps."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.efficiency.collect import EfficiencyRow
from experiments.efficiency.measuring import PICTURE_PREPARATION
from experiments.efficiency.subject import COMPRESSOR, LLM, PROJECTOR, QUERY_PART, TOWER
from experiments.efficiency.tables import (
    SHORT_PART_NAMES,
    choose_unit,
    list_differing_keys,
    list_parts_of_rows,
)
from experiments.efficiency.timing import OTHER_PART
from experiments.figures import labels
from experiments.figures.style import BLUE, GREY, ORANGE, escape_dollars, render_svg, strip_axes

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
ROW_INCHES = 0.3  # inches a row takes


def draw_result_pictures(
    rows: Sequence[EfficiencyRow], steps: Sequence[EfficiencyRow] = ()
) -> dict[str, str]:
    """SVG by name; `steps` are of training."""
    found = {"training": draw_training_bars(steps)} if steps else {}
    if not rows:
        return found
    scale, letter = choose_unit(max(sum(row["counts"]["prefill"].values()) for row in rows))
    found["flops"] = draw_stacked_parts(rows, "counts", "prefill", scale, f"{letter}FLOPs of a prefill")
    measured = [row for row in rows if row["measured"]]
    if measured:
        found["time"] = draw_stacked_parts(
            measured, "measured", "parts", 1e-3, "ms from pictures to the first token"
        )
        least = min(row["batch"] for row in measured)
        found["ttft"] = draw_ttft_by_tokens([row for row in measured if row["batch"] == least])
    found["memory"] = draw_memory_bars(rows)
    return found


def name_row(row: EfficiencyRow, rows: Sequence[EfficiencyRow]) -> str:
    """Label and what tells it from others of the label."""
    words = [
        f"{key} {row[key]}" if key != "picture" else row[key]
        for key in list_differing_keys(rows)
        if row[key] != "any"
    ]
    return ", ".join([row["label"], *words])


def make_bar_axes(rows: Sequence[EfficiencyRow], heading: str):
    """Horizontal axes with a line for each row."""
    figure = Figure((8.4, 1.3 + ROW_INCHES * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(rows)), [escape_dollars(name_row(row, rows)) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(heading, fontsize=9)
    strip_axes(axes, "x")
    return figure, axes


def draw_bar_legend(axes) -> None:
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
    """By part; of a measurement the medians."""
    figure, axes = make_bar_axes(rows, heading)
    start = np.zeros(len(rows))
    for part in list_parts_of_rows(rows, where, inner):
        values = [row[where][inner].get(part, 0) for row in rows]
        values = np.array([v[0] if isinstance(v, (list, tuple)) else v for v in values]) / scale
        axes.barh(
            range(len(rows)), values, 0.7, left=start, color=PART_COLOURS[part], label=SHORT_PART_NAMES[part]
        )
        start += values
    draw_bar_legend(axes)
    return render_svg(figure)


def draw_ttft_by_tokens(rows: Sequence[EfficiencyRow]) -> str:
    """First token against visual tokens of a row; lines from the lowest to the highest round."""
    figure = Figure((7.6, 4.2))
    axes = figure.add_axes((0.09, 0.12, 0.89, 0.85))  # fixed, so that labels can be placed before drawing
    visual = np.array([row["counts"]["visual"] for row in rows])
    middle, low, high = 1e3 * np.array([row["measured"]["ttft"] for row in rows]).T
    for i, row in enumerate(rows):
        colour = ORANGE if row["counts"]["query"] else BLUE
        axes.errorbar(
            visual[i],
            middle[i],
            [[middle[i] - low[i]], [high[i] - middle[i]]],
            fmt="o",
            color=colour,
            markersize=5,
            elinewidth=1,
            capsize=2,
        )
    axes.set_xlabel("visual tokens of a row", fontsize=9)
    axes.set_ylabel("ms to the first token; orange: with query tokens", fontsize=9)
    if all(visual):  # blind rows have no place on such axes
        axes.set(
            xscale="log",
            yscale="log",
            xlim=(min(visual) / 1.2, max(visual) * 2),
            ylim=(min(low) / 1.2, max(high) * 1.2),
        )
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter("{x:,.0f}")
            axis.set_minor_formatter(NullFormatter())
    else:
        axes.set(xlim=(0, 1.3 * max(visual) + 1), ylim=(0, 1.05 * max(high)))  # room for labels
    names = [name_row(row, rows) for row in rows]
    labels.annotate_points(axes, names, visual, middle, np.maximum(high - middle, middle - low))
    strip_axes(axes, "both")
    return render_svg(figure)


def draw_memory_bars(rows: Sequence[EfficiencyRow]) -> str:
    """Weights, KV cache and, where measured, what else an answer takes at its peak."""
    weights, cache = (
        np.array([row["counts"][name] for row in rows]) for name in ("weight_bytes", "cache_bytes")
    )
    peak = np.array([row["measured"]["peak_bytes"] if row["measured"] else 0 for row in rows])
    scale, word = (2**30, "GiB") if weights.max() > 2**29 else (2**20, "MiB")
    weights, cache, peak = weights / scale, cache / scale, peak / scale
    figure, axes = make_bar_axes(rows, word)
    places = range(len(rows))
    axes.barh(places, weights, 0.7, color=GREY, label="weights")
    axes.barh(places, cache, 0.7, left=weights, color=ORANGE, label="KV cache after the prefill")
    if peak.any():
        axes.barh(
            places,
            np.maximum(peak - weights - cache, 0),
            0.7,
            left=weights + cache,
            color=BLUE,
            label="else, at the peak",
        )
    draw_bar_legend(axes)
    return render_svg(figure)


def draw_training_bars(rows: Sequence[EfficiencyRow]) -> str:
    """Of a training step: time of a row of data with its spread, and peak memory; a bar a cell and stage."""
    cells, wide = list(dict.fromkeys(row["label"] for row in rows)), 0.8 / len(STAGE_COLOURS)
    figure = Figure((8.4, 1.3 + ROW_INCHES * len(STAGE_COLOURS) * len(cells)), layout="constrained")
    times, peaks = figure.subplots(1, 2, sharey=True)
    for number, (stage, colour) in enumerate(STAGE_COLOURS.items()):
        chosen = [row for row in rows if row["stage"] == stage]
        places = [
            cells.index(row["label"]) + (number - (len(STAGE_COLOURS) - 1) / 2) * wide for row in chosen
        ]
        middle, low, high = (
            1e3 * np.array([row["seconds"] for row in chosen]) / np.array([[row["rows"]] for row in chosen])
        ).T
        times.barh(
            places,
            middle,
            0.9 * wide,
            color=colour,
            label=stage,
            xerr=(middle - low, high - middle),
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        peaks.barh(places, [row["peak_bytes"] / 2**30 for row in chosen], 0.9 * wide, color=colour)
    times.set_yticks(range(len(cells)), map(escape_dollars, cells))
    times.set_ylim(len(cells) - 0.4, -0.6)
    times.set_xlabel("ms a row of data", fontsize=9)
    peaks.set_xlabel("peak GiB", fontsize=9)
    for axes in (times, peaks):
        strip_axes(axes, "x")
    draw_bar_legend(times)
    return render_svg(figure)
