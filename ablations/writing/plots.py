"""Pictures of a report as SVG: accuracy against visual tokens, claims, families, what EmbQ adds."""

import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ablations.claims.spec import Claim
from ablations.claims.statistics import compute_seed_interval
from ablations.claims.verdicts import FAILS, HOLDS, Verdict, judge_claims
from ablations.outcomes import ReportRow, ReportTable
from experiments.figures import labels
from experiments.figures.style import BLUE, GREY, ORANGE, escape_dollars, render_svg, strip_axes

VERDICT_COLOURS = {HOLDS: "#0a7d32", FAILS: "#b3261e"}
MAX_NAMED_ROWS = 24  # rows of which not all can have a name in a plot
MAX_ALIKE_ROWS = 6  # rows with one number of tokens of which not more can be told apart on a line
REPORT_ROW_INCHES = 0.27  # inches a row of a picture with rows takes


def find_distinct_rows(table: ReportTable) -> list[ReportRow]:
    """Rows with results and visual tokens, each configuration once."""
    found: dict[str, ReportRow] = {}
    for row in table.rows:
        if row.outcomes and row.efficiency.get("visual_tokens"):
            same = str([(seed, right.tobytes()) for seed, right in row.outcomes.items()])
            found.setdefault(same, row)
    return list(found.values())


def count_row_tokens(row: ReportRow) -> float:
    """Of an image and a question's queries: what the LLM reads beside the text, where a pruner drops some on
    average over its layers."""
    visual = row.efficiency.get("average_visual_tokens") or row.efficiency["visual_tokens"]
    return visual + row.efficiency.get("query_tokens", 0)


def is_crowded(table: ReportTable) -> bool:
    """Whether so many compressors have one number of tokens that a ranking shows them better. They are what
    has a row NAME beside a row NAME+MODULE."""
    rows = find_distinct_rows(table)
    names = {row.label for row in rows}
    paired = any(name.rpartition("+")[0] in names for name in names)
    return paired and max(Counter(map(count_row_tokens, rows)).values()) > MAX_ALIKE_ROWS


def draw_pareto(table: ReportTable) -> str | None:
    """Accuracy against visual and query tokens; what nothing cheaper beats is joined. None if all cost the
    same, or too many do."""
    rows = find_distinct_rows(table)
    tokens = np.array([count_row_tokens(row) for row in rows])
    if len(set(tokens)) < 2 or is_crowded(table):
        return None
    scores = [compute_seed_interval(table.compute_accuracies(row)) for row in rows]
    means = np.array([mean for mean, _ in scores])
    half = np.nan_to_num([half for _, half in scores])
    half = np.minimum(half, [means, 100 - means])  # below and above: two seeds' interval can leave the scale
    figure = Figure((7.6, max(3.6, 0.16 * len(rows) + 2.2)))
    axes = figure.add_axes((0.08, 0.12, 0.9, 0.78))  # fixed, so that labels can be placed before drawing
    queries = np.array([bool(row.efficiency.get("query_tokens")) for row in rows])
    for chosen, colour, word in ((queries, ORANGE, "with query tokens"), (~queries, BLUE, "without")):
        axes.errorbar(
            tokens[chosen],
            means[chosen],
            half[:, chosen],
            fmt="o",
            color=colour,
            markersize=5,
            elinewidth=1,
            capsize=2,
            label=word,
        )
    best = [i for i in np.lexsort((-means, tokens)) if means[i] == means[tokens <= tokens[i]].max()]
    axes.plot(
        tokens[best], means[best], color=GREY, linewidth=1, linestyle="--", zorder=0, label="Pareto front"
    )
    shown = thin_out_ticks(sorted(set(tokens)))
    axes.set_xscale("log", base=2)
    axes.set_xticks(shown, [f"{t:.0f}" for t in shown])
    axes.set_xticks([], minor=True)
    axes.set_xlim(tokens.min() / 1.15, tokens.max() * 1.6)
    labels.annotate_points(
        axes,
        [row.label for row in rows],
        tokens,
        means,
        half.max(0),
        pick_named_rows(tokens, means, best) if len(rows) > MAX_NAMED_ROWS else None,
    )
    axes.set_xlabel("visual tokens of an image + query tokens", fontsize=9)
    axes.set_ylabel("accuracy in %", fontsize=9)
    axes.set_title(escape_dollars(f"{table.heading}: accuracy against tokens"), fontsize=10, loc="left")
    axes.legend(
        fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0.2
    )
    strip_axes(axes, "y")
    return render_svg(figure)


def pick_named_rows(tokens: np.ndarray, means: np.ndarray, best: Sequence[int]) -> list[int]:
    """Which of a crowd of rows have names: the front, and the lowest at each number of tokens."""
    lowest = [min(np.flatnonzero(tokens == each), key=lambda i: means[i]) for each in sorted(set(tokens))]
    return list(dict.fromkeys([*map(int, best), *map(int, lowest)]))


def thin_out_ticks(values: Sequence[float]) -> list[float]:
    """Ascending values without those less than a fifth above the one before."""
    found = []
    for value in values:
        if not found or value >= 1.2 * found[-1]:
            found.append(value)
    return found


def draw_claims(title: str, verdicts: Sequence[tuple[str, Verdict]]) -> str | None:
    """Each claim's difference with its interval, as far from its limit as it is. None if none has one."""
    shown = [(name, each) for name, each in verdicts if not math.isnan(each.low)]
    if not shown:
        return None
    figure, axes = draw_intervals(
        8.4,
        title,
        [f"{each.claim.text}  [{name}]" for name, each in shown],
        [
            (
                each.low + each.claim.points,
                each.estimate + each.claim.points,
                each.high + each.claim.points,
                VERDICT_COLOURS.get(each.word, GREY),
            )
            for _, each in shown
        ],
    )
    figure.supxlabel("percentage points from the claim's limit; to the right it holds", fontsize=9)
    return render_svg(figure)


def draw_intervals(
    width: float,
    title: str,
    names: Sequence[str],
    rows: Sequence[tuple[float, float, float, str]],
    hollow: Collection[int] = (),
) -> tuple[Figure, Axes]:
    """A row a name, from the top: a line from low to high, a dot at the estimate, and their colour. `hollow`:
    the numbers of open dots."""
    figure = Figure((width, 1.1 + REPORT_ROW_INCHES * 1.25 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.axvline(0, color="#444", linewidth=1)
    for y, (low, estimate, high, colour) in enumerate(rows):
        axes.plot([low, high], [y, y], color=colour, linewidth=2)
        axes.plot(
            estimate, y, "o", color=colour, markersize=5, markerfacecolor="white" if y in hollow else colour
        )
    axes.set_yticks(range(len(rows)), map(escape_dollars, names))
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title(escape_dollars(title), fontsize=10, loc="left")
    strip_axes(axes, "x")
    return figure, axes


def draw_families(table: ReportTable) -> str | None:
    """A panel of bars for each family of questions, a bar a row. None with a single family."""
    rows, names = [row for row in table.rows if row.outcomes], table.family_names
    if not rows or not names:
        return None
    figure = Figure((1.75 + 1.35 * len(names), 1.0 + REPORT_ROW_INCHES * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    places = np.arange(len(rows))
    for axes, family in zip(panels, names):
        scores = [compute_seed_interval(table.compute_accuracies(row, family)) for row in rows]
        half = [0 if math.isnan(h) else h for _, h in scores]
        colours = [
            ORANGE
            if row.efficiency.get("query_tokens")
            else BLUE
            if row.efficiency.get("visual_tokens")
            else GREY
            for row in rows
        ]
        axes.barh(
            places,
            [mean for mean, _ in scores],
            0.72,
            xerr=half,
            color=colours,
            error_kw={"elinewidth": 0.8, "ecolor": "#333"},
        )
        chance = 100 * table.chance["families"].get(family, math.nan)
        axes.axvline(chance, color="#333", linewidth=0.9, linestyle=":")
        axes.set_title(escape_dollars(family), fontsize=9)
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 50, 100])
        strip_axes(axes, "x")
    panels[0].set_yticks(places, [escape_dollars(row.label) for row in rows])
    panels[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel("accuracy in %; dotted: chance", fontsize=9)
    return render_svg(figure)


def judge_gains(table: ReportTable) -> list[Verdict]:
    """For every row NAME+MODULE beside a row NAME: how much the module adds, with its interval; nothing for
    a single such row."""
    there = {row.label for row in table.rows if row.outcomes}
    pairs = [(row.label, row.label.rpartition("+")[0]) for row in table.rows if row.label in there]
    claims = [Claim(other, "", "better", ((row, other),)) for row, other in pairs if other in there]
    if len(claims) < 2:
        return []
    outcomes = {row.label: row.outcomes for row in table.rows}
    return [
        each for each in judge_claims(claims, outcomes, table.families, table.picture_numbers) if each.pairs
    ]


def is_decided(gain: Verdict) -> bool:
    """Whether an interval leaves zero out, and tells of seeds, too."""
    return gain.pairs[0].squares is not None and not gain.low <= 0 <= gain.high


def draw_gain(table: ReportTable) -> str | None:
    """What EmbQ adds to each compressor, the largest first. None if fewer than two rows have a partner."""
    found = sorted(judge_gains(table), key=lambda each: -each.estimate)
    if not found:
        return None
    figure, axes = draw_intervals(
        6.4,
        f"{table.heading}: gain from EmbQ by compressor",
        [each.claim.text for each in found],
        [(each.low, each.estimate, each.high, ORANGE if is_decided(each) else GREY) for each in found],
        [i for i, each in enumerate(found) if each.pairs[0].squares is None],
    )
    axes.set_xlabel(
        "percentage points that the query module adds; grey: may be none;\n"
        "open: one seed, an interval over questions alone",
        fontsize=9,
    )
    return render_svg(figure)
