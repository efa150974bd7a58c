"""Pictures of a report: claims, families, gains of query modules; what pictures of accuracy share."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ablations.claims.spec import Claim
from ablations.claims.statistics import compute_seed_interval
from ablations.claims.verdicts import FAILS, HOLDS, TIE, Verdict
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.claims_grid import judge_table
from experiments.figures.style import BLUE, GREY, ORANGE, escape_dollars, strip_axes

MODULE_NAME = re.compile(r"^\w+")  # what stands behind the + of NAME+MODULE WORDS
VERDICT_COLOURS = {HOLDS: "#0a7d32", FAILS: "#b3261e", TIE: BLUE}
MAX_ALIKE_ROWS = 6  # more rows with one number of tokens cannot be told apart on a line
REPORT_ROW_INCHES = 0.27  # height of a row in a picture of rows
# in the corner above the axes, where no point is
LEGEND_STYLE: dict[str, Any] = {
    "fontsize": 8,
    "frameon": False,
    "loc": "lower right",
    "bbox_to_anchor": (1, 1),
    "ncols": 3,
    "borderaxespad": 0.2,
}


# ---- rows and what they cost ----


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


# ---- accuracy against tokens ----


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


# ---- intervals ----


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


def draw_claims(title: str, verdicts: Sequence[tuple[str, Verdict]]) -> Figure | None:
    """Each claim's difference with its interval, as far from its limit as it is. `verdicts` with the heading
    of their tables. None if none has an interval."""
    rows = []
    for heading, verdict in verdicts:
        if math.isnan(verdict.low):
            continue
        points = verdict.claim.points
        row = IntervalRow(
            name=f"{verdict.claim.text}  [{heading}]",
            low=verdict.low + points,
            estimate=verdict.estimate + points,
            high=verdict.high + points,
            colour=VERDICT_COLOURS.get(verdict.word, GREY),
        )
        rows.append(row)
    if not rows:
        return None
    figure, _ = draw_intervals(8.4, title, rows)
    figure.supxlabel("percentage points from the claim's limit; to the right it holds", fontsize=9)
    return figure


def split_label(label: str) -> tuple[str, str, str]:
    """Compressor, query module and words of a row NAME+MODULE or NAME+MODULE WORDS; the first two are empty
    where a row has no module."""
    compressor, plus, rest = label.rpartition("+")
    match = MODULE_NAME.match(rest)
    if not plus or match is None:
        return "", "", rest
    return compressor, match.group(), rest[match.end() :]


def find_usual_module(labels: Iterable[str]) -> str:
    """The query module that most rows have; the others are named in full where lines are called by the
    compressor. Empty where no row has one."""
    modules: Counter[str] = Counter()
    for label in labels:
        _, module, _ = split_label(label)
        if module:
            modules[module] += 1
    if not modules:
        return ""
    ((usual_module, _),) = modules.most_common(1)
    return usual_module


def judge_gains(table: ReportTable) -> list[Verdict]:
    """For every row NAME+MODULE WORDS beside a row NAME WORDS, or else a row NAME: how much the module adds,
    with its interval; nothing for a single such row. Gains are called NAME WORDS, or as their row where
    its module is not the one that most rows have."""
    finished_labels = {row.label for row in table.rows if row.outcomes}
    usual_module = find_usual_module(row.label for row in table.rows)
    claims = []
    for row in table.rows:
        compressor, module, words = split_label(row.label)
        name = compressor + words
        partner = name if name in finished_labels else compressor
        pair = (row.label, partner)
        if module and finished_labels.issuperset(pair):
            if module != usual_module:
                name = row.label
            claims.append(Claim(name, "", "better", (pair,)))
    if len(claims) < 2:
        return []
    verdicts = judge_table(table, claims)
    return [verdict for verdict in verdicts if verdict.pairs]  # two rows may share no seed


def is_decided(gain: Verdict) -> bool:
    """Whether an interval leaves zero out, and tells of seeds, too."""
    tells_of_seeds = gain.pairs[0].squares is not None
    return tells_of_seeds and not gain.low <= 0 <= gain.high


def draw_gain(table: ReportTable) -> Figure | None:
    """What the query module adds, the largest first. None if fewer than two rows have a partner."""
    gains = sorted(judge_gains(table), key=lambda gain: -gain.estimate)
    if not gains:
        return None
    rows = []
    for gain in gains:
        row = IntervalRow(
            name=gain.claim.text,
            low=gain.low,
            estimate=gain.estimate,
            high=gain.high,
            colour=ORANGE if is_decided(gain) else GREY,
            hollow=gain.pairs[0].squares is None,
        )
        rows.append(row)
    modules = set()
    for gain in gains:
        _, module, _ = split_label(gain.pairs[0].row)
        modules.add(module)
    title = "gain from EmbQ by compressor" if modules == {"embq"} else "gain from the query module"
    figure, axes = draw_intervals(6.4, f"{table.heading}: {title}", rows)
    axes.set_xlabel(
        "percentage points that the query module adds; grey: may be none;\n"
        "open: one seed, an interval over questions alone",
        fontsize=9,
    )
    return figure


# ---- families of questions ----


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
