"""What query modules add: the gain behind each compressor, and a picture of the gains."""

import re
from collections import Counter
from collections.abc import Iterable

from matplotlib.figure import Figure

from ablations.claims.spec import Claim
from ablations.claims.verdicts import Verdict
from ablations.outcomes import ReportTable
from ablations.writing.grids.claims_grid import judge_table
from ablations.writing.plots.intervals import IntervalRow, draw_intervals
from experiments.figures.style import GREY, ORANGE

MODULE_NAME = re.compile(r"^\w+")  # what stands behind the + of NAME+MODULE WORDS


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
    """For every row NAME+MODULE WORDS beside a row NAME WORDS, or else one without what stands before the
    first comma: how much the module adds, with its interval; nothing for a single such row. Gains are called
    NAME WORDS, or as their row where its module is not the one that most rows have."""
    finished_labels = {row.label for row in table.rows if row.outcomes}
    usual_module = find_usual_module(row.label for row in table.rows)
    claims = []
    for row in table.rows:
        compressor, module, words = split_label(row.label)
        name = compressor + words
        partner = name
        # words before a comma are the module's ("sap+embq warmed, 6 epochs"); settings are both rows', and
        # would be part of the gain
        if name not in finished_labels and "=" not in words:
            _, comma, settings = words.partition(",")
            partner = compressor + comma + settings
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
