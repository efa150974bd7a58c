"""Pictures of intervals: a row a name, a line from low to high; of claims, how far each is from its limit."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ablations.claims.verdicts import FAILS, HOLDS, TIE, UNRESOLVED, Verdict
from experiments.figures.style import BLUE, GREY, escape_dollars, strip_axes

VERDICT_COLOURS = {HOLDS: "#0a7d32", FAILS: "#b3261e", TIE: BLUE, UNRESOLVED: GREY}
REPORT_ROW_INCHES = 0.27  # height of a row in a picture of rows


class IntervalRow(NamedTuple):
    """A line of a picture of intervals. `hollow`: an open dot, where the interval tells nothing of seeds."""

    name: str
    low: float
    estimate: float
    high: float
    colour: str
    hollow: bool = False


def draw_intervals(width: float, title: str, rows: Sequence[IntervalRow]) -> tuple[Figure, Axes]:
    """A row a name, from the top: a line from low to high and a dot at the estimate. `width` in inches."""
    height = 1.1 + REPORT_ROW_INCHES * 1.25 * len(rows)
    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#444", linewidth=1)
    for place, row in enumerate(rows):
        axes.plot([row.low, row.high], [place, place], color=row.colour, linewidth=2)
        axes.plot(
            row.estimate,
            place,
            "o",
            color=row.colour,
            markersize=5,
            markerfacecolor="white" if row.hollow else row.colour,
        )
    names = [escape_dollars(row.name) for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.5, -0.5)  # the first at the top
    axes.set_title(escape_dollars(title), fontsize=10, loc="left")
    strip_axes(axes, "x")
    return figure, axes


def draw_claims(verdicts: Sequence[tuple[str, Verdict]]) -> Figure | None:
    """Each claim's difference with its interval, as far from its limit as it is. `verdicts` with the heading
    of their tables. None if none has an interval."""
    rows = []
    drawn_words = set()
    for heading, verdict in verdicts:
        if math.isnan(verdict.low):
            continue
        points = verdict.claim.points
        row = IntervalRow(
            name=f"{verdict.claim.text}  [{heading}]",
            low=verdict.low + points,
            estimate=verdict.estimate + points,
            high=verdict.high + points,
            colour=VERDICT_COLOURS[verdict.word],
        )
        rows.append(row)
        drawn_words.add(verdict.word)
    if not rows:
        return None
    figure, _ = draw_intervals(8.4, "Claims", rows)
    figure.supxlabel("percentage points from the claim's limit; to the right it holds", fontsize=9)
    handles = []
    for word, colour in VERDICT_COLOURS.items():
        if word in drawn_words:
            handles.append(Line2D([], [], color=colour, marker="o", markersize=5, linewidth=2, label=word))
    figure.legend(handles=handles, loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    return figure
