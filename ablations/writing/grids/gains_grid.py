"""What query modules add: the gain behind each compressor, as numbers."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean

from ablations.claims.spec import Claim
from ablations.claims.verdicts import Verdict
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.grids.claims_grid import judge_table
from ablations.writing.grids.number_words import (
    ONE_SEED_MARK,
    ONE_SEED_NOTE,
    format_interval,
    format_signed,
)
from ablations.writing.grids.word_grid import WordGrid

OWN_SEEDS_MARK = "°"
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


def name_modules(gains: Iterable[Verdict]) -> str:
    """What has been added, in words."""
    modules = set()
    for gain in gains:
        _, module, _ = split_label(gain.pairs[0].row)
        modules.add(module)
    return "EmbQ" if modules == {"embq"} else "the query module"


def make_gains_grid(table: ReportTable) -> WordGrid | None:
    """A line a row with a query module: its accuracy without and with it, the difference with its interval,
    and the difference by family of questions. None where fewer than two rows have a partner."""
    gains = judge_gains(table)
    if not gains:
        return None
    rows = {row.label: row for row in table.rows}
    lines = []
    for gain in gains:
        lines.append((rows[gain.pairs[0].row].block, make_gain_line(table, rows, gain)))
    header = ["", "seeds", "without", "with", "gain", "95 % interval", *table.family_names]
    title = f"{table.heading}: what {name_modules(gains)} adds"
    return WordGrid(title, header, lines, list_gain_notes(table, gains))


def make_gain_line(table: ReportTable, rows: Mapping[str, ReportRow], gain: Verdict) -> list[str]:
    """A gain's name, the seeds that both rows have, accuracies at them, and the gain, whole and by family.
    `rows` by label."""
    pair = gain.pairs[0]

    def compute_accuracy(label: str, family: str | None = None) -> float:
        return fmean(table.compute_accuracies(rows[label], family, pair.seeds))

    words = [gain.claim.text, str(len(pair.seeds))]
    for label in (pair.other, pair.row):
        words.append(f"{compute_accuracy(label):.1f}")
    words += [format_signed(gain.estimate), format_interval(gain) + mark_interval(gain)]
    for family in table.family_names:
        gained = compute_accuracy(pair.row, family) - compute_accuracy(pair.other, family)
        words.append(format_signed(gained))
    return words


def mark_interval(gain: Verdict) -> str:
    """A mark where an interval tells nothing of seeds, or leaves zero out by other pairs alone."""
    if gain.pairs[0].squares is None:
        return ONE_SEED_MARK
    is_moderated = is_decided(gain) and gain.own_low <= 0 <= gain.own_high
    return OWN_SEEDS_MARK if is_moderated else ""


def list_gain_notes(table: ReportTable, gains: Iterable[Verdict]) -> list[str]:
    """What the columns say, and the marks that are used."""
    notes = ["Accuracies in % and gains in points, at the seeds that both rows have."]
    if table.family_names:
        notes[0] += " By family: the gain alone."
    marks = set(map(mark_interval, gains))
    if OWN_SEEDS_MARK in marks:
        notes.append(f"{OWN_SEEDS_MARK}: by the pair's own seeds alone it may be none.")
    if ONE_SEED_MARK in marks:
        notes.append(ONE_SEED_NOTE)
    return notes
