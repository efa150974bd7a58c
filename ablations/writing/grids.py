"""A report as grids of words, whatever it is written in: each table's scores and claims, and their sum."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import OmegaConf

from ablations.claims.spec import Claim
from ablations.claims.statistics import CONFIDENCE_LEVEL, RowComparison, compute_seed_interval
from ablations.claims.verdicts import FAILS, HOLDS, NO_RESULTS, TIE, UNRESOLVED, Verdict, judge_claims
from ablations.costs import measured
from ablations.costs.prefill import PREFILL_TEXT_TOKENS
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.writing.word_grid import WordGrid
from experiments.config.table_files import list_paper_tables

OURS_MARK = "†"
ABSENT_MARK = "‡"
MEASURED_COLUMNS = {"ttft_ms": "TTFT", "peak_memory_mib": "peak memory"}
PUBLISHED_FILE = Path(__file__).parents[1] / "published.yaml"
SCORES_NOTE = (
    "Accuracy in %. ±: half the 95 % t-interval of the mean over seeds; none with one seed. "
    f"Prefill: one image, {PREFILL_TEXT_TOKENS} text tokens, tower included; "
    "a multiply-add is two operations."
)
CLAIMS_NOTE = (
    "Differences in percentage points of accuracy; intervals: 95 %, paired bootstrap over test "
    "questions x seeds, the seeds' variance moderated by that of the table's other pairs (claims.csv has the "
    "intervals without, as own_low and own_high). A claim holds if its interval lies wholly on its side. No "
    "correction for the number of claims. Moderation and ties are judged afterwards: they came when seeds 0 "
    "to 2 had been seen. Remarks say what a verdict would be without moderation."
)


class EfficiencyColumn(NamedTuple):
    """A column of what a row costs.

    heading       what stands above it
    key           of a row's efficiency
    format_value  how a number is written
    """

    heading: str
    key: str
    format_value: Callable[[float], str]


# ---- numbers as words ----


def format_amount(number: float) -> str:
    """1234567 -> 1.23 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def format_signed(number: float) -> str:
    """A difference with its sign; what rounds to nothing is +0.0."""
    words = f"{number:+.1f}"
    return words.replace("-0.0", "+0.0")


def format_interval(judged: Verdict | RowComparison) -> str:
    """The interval of a verdict or pair."""
    if math.isnan(judged.low):
        return ""
    return format_range(judged.low, judged.high)


def format_range(low: float, high: float) -> str:
    """Two ends of an interval."""
    return f"{format_signed(low)} to {format_signed(high)}"


EFFICIENCY_COLUMNS = (
    EfficiencyColumn("visual tokens", "visual_tokens", "{:.0f}".format),
    EfficiencyColumn("left on average over layers", "average_visual_tokens", "{:.1f}".format),
    EfficiencyColumn("query tokens", "query_tokens", "{:.0f}".format),
    EfficiencyColumn("parameters added", "parameters_added", format_amount),
    EfficiencyColumn("prefill FLOPs", "prefill_flops", format_amount),
    EfficiencyColumn("TTFT ms", "ttft_ms", "{:.1f}".format),
    EfficiencyColumn("peak memory MiB", "peak_memory_mib", "{:.0f}".format),
)


# ---- a table's scores ----


def make_scores_grid(table: ReportTable) -> WordGrid:
    """Accuracy and efficiency of a table's rows; the chance row first."""
    columns = find_efficiency_columns(table)
    lines = []
    if table.chance:  # it is of the questions, which a table without finished cells has none of
        lines.append(("", make_chance_line(table, columns)))
    for row in table.rows:
        lines.append((row.block, make_scores_line(table, row, columns)))
    header = ["", "seeds", "overall", *table.family_names]
    for column in columns:
        header.append(column.heading)
    return WordGrid(title_table(table), header, lines, list_table_notes(table))


def title_table(table: ReportTable) -> str:
    """What stands above a table."""
    return f"{table.heading}: {table.title}" if table.title else table.heading


def find_efficiency_columns(table: ReportTable) -> list[EfficiencyColumn]:
    """The efficiency columns of which any row has a value."""
    columns = []
    for column in EFFICIENCY_COLUMNS:
        if any(column.key in row.efficiency for row in table.rows):
            columns.append(column)
    return columns


def make_chance_line(table: ReportTable, columns: Sequence[EfficiencyColumn]) -> list[str]:
    """Accuracy of always giving the most frequent answer; it has no seeds and costs nothing."""
    accuracies = [table.chance["overall"]]
    for family in table.family_names:
        accuracies.append(table.chance["families"].get(family, math.nan))
    words = ["chance", ""]
    for accuracy in accuracies:
        words.append(f"{100 * accuracy:.1f}")  # in %, as all accuracies of a table
    return words + [""] * len(columns)


def make_scores_line(table: ReportTable, row: ReportRow, columns: Sequence[EfficiencyColumn]) -> list[str]:
    """A row's label, seeds, accuracies and costs."""
    label = row.label
    if row.ours:
        label += OURS_MARK
    if row.absent:
        label += ABSENT_MARK
    if row.outcomes:
        words = [label, str(len(row.outcomes)), format_overall(table, row)]
        for family in table.family_names:
            mean, _ = compute_seed_interval(table.compute_accuracies(row, family))
            words.append(f"{mean:.1f}")
    else:
        state = "cannot be" if row.absent else "missing"
        words = [label, "", state] + [""] * len(table.family_names)
    for column in columns:
        value = row.efficiency.get(column.key)
        words.append("" if value is None else column.format_value(value))
    return words


def format_overall(table: ReportTable, row: ReportRow) -> str:
    """Mean, and its ± where there are several seeds."""
    mean, half = compute_seed_interval(table.compute_accuracies(row))
    if math.isnan(half):
        return f"{mean:.1f}"
    return f"{mean:.1f} ±{half:.1f}"


def list_table_notes(table: ReportTable) -> list[str]:
    """Below a table: what is ours, what cannot be, what is missing, what was not measured."""
    labels_by_reason: dict[str, list[str]] = {}
    labels_by_absence: dict[str, list[str]] = {}
    labels_by_missing_seeds: dict[str, list[str]] = {}
    for row in table.rows:
        if row.ours:
            labels_by_reason.setdefault(row.ours, []).append(row.label)
        if row.absent:
            labels_by_absence.setdefault(row.absent, []).append(row.label)
        if row.missing:
            seeds = ", ".join(map(str, row.missing))
            labels_by_missing_seeds.setdefault(seeds, []).append(row.label)
    notes = []
    for reason, labels in labels_by_reason.items():
        notes.append(f"{OURS_MARK} {', '.join(labels)}: {reason}.")
    for reason, labels in labels_by_absence.items():
        notes.append(f"{ABSENT_MARK} {', '.join(labels)}: {reason}.")
    if labels_by_missing_seeds:
        missing_cells = []
        for seeds, labels in labels_by_missing_seeds.items():
            missing_cells.append(f"{', '.join(labels)} (seed {seeds})")
        notes.append(f"Missing: {'; '.join(missing_cells)}; {table.sweep} runs them.")
    if table.left_out:
        notes.append(f"Left out by rows=: {', '.join(table.left_out)}.")
    unmeasured = []
    for key, name in MEASURED_COLUMNS.items():
        if all(key not in row.efficiency for row in table.rows):
            unmeasured.append(name)
    if unmeasured and table.chance:  # without chance there are no cells that could be measured
        notes.append(f"Not measured: {', '.join(unmeasured)}; measure=true measures them.")
    return notes


# ---- a table's claims ----


def judge_table(
    table: ReportTable, claims: Sequence[Claim], confidence: float = CONFIDENCE_LEVEL
) -> list[Verdict]:
    """Verdicts on claims about a table's rows. Seeds are told of by the pairs of the table's own claims, so
    that a difference has the same interval wherever it is shown."""
    return judge_claims(
        claims,
        table.outcomes_by_label,
        table.families,
        table.picture_numbers,
        training_keys=table.training_by_label,
        confidence=confidence,
        left_out=table.left_out,
        evidence=table.claims,
    )


def make_claims_grid(verdicts: Sequence[Verdict]) -> WordGrid:
    """The claims of a table; the pairs of a claim of several below it."""
    lines = []
    sources = set()
    for verdict in verdicts:
        sources.add(verdict.claim.source)
        lines.append(("", make_claim_line(verdict)))
        if len(verdict.pairs) > 1:
            for pair in verdict.pairs:
                names = f"{pair.row} - {pair.other}"
                difference = format_signed(pair.estimate)
                lines.append(("", ["", names, difference, format_interval(pair), "", ""]))
    header = ["claim", "statement", "difference", "interval", "verdict", "remarks"]
    return WordGrid(f"Claims of {', '.join(sorted(sources))}", header, lines)


def make_claim_line(verdict: Verdict) -> list[str]:
    """A claim's sentence, statement, difference, interval, verdict and remarks."""
    claim = verdict.claim
    difference = ""
    if verdict.word != NO_RESULTS:
        difference = format_signed(verdict.estimate)
        if claim.points:
            difference += f" (limit {format_signed(-claim.points)})"
    remarks = []
    if verdict.note:
        remarks.append(verdict.note)
    if verdict.own_word != verdict.word:
        own_interval = format_range(verdict.own_low, verdict.own_high)
        remarks.append(f"without moderation {verdict.own_word} ({own_interval})")
    if claim.ours:
        remarks.append(f"ours: {claim.ours}")
    interval = format_interval(verdict)
    return [claim.text, claim.statement, difference, interval, verdict.word, "; ".join(remarks)]


# ---- sentences of the whole report ----


def summarize_claims(report: Report, verdicts: Mapping[str, Sequence[Verdict]]) -> list[str]:
    """Sentences: what the claims came to, and each that the runs contradict; none without claims."""
    counts = dict.fromkeys((HOLDS, FAILS, TIE, UNRESOLVED, NO_RESULTS), 0)
    contradictions = []
    for table in report.tables:
        for verdict in verdicts[table.name]:
            counts[verdict.word] += 1
            if verdict.word == FAILS:
                contradictions.append(describe_contradiction(table, verdict))
    total = sum(counts.values())
    if not total:
        return []
    tally = "; ".join(f"{word}: {count}" for word, count in counts.items() if count)
    first_letter = tally[:1].upper()
    sentences = [f"{total} claims. {first_letter}{tally[1:]}."]
    if not contradictions:
        return [*sentences, "These runs contradict none of them."]
    heading = "These runs disagree with the paper:" if is_of_paper(report) else "These runs contradict:"
    return [*sentences, heading, *contradictions]


def is_of_paper(report: Report) -> bool:
    """Whether any table is one of the paper's."""
    names = list_paper_tables()
    return any(table.name in names and table.heading == f"Table {table.name}" for table in report.tables)


def describe_contradiction(table: ReportTable, verdict: Verdict) -> str:
    """A line of a list: a claim that does not hold, and by how much."""
    return (
        f'- {table.heading}: "{verdict.claim.text}" does not hold here ({verdict.claim.statement}; the '
        f"difference is {format_signed(verdict.estimate)}, {format_interval(verdict)})."
    )


def describe_provenance(report: Report) -> list[str]:
    """Sentences: how the report came about; none where no cell has finished."""
    provenance = report.provenance
    if not provenance.get("cells") and not provenance.get("taken"):
        return []
    sentences = [f"Command: {provenance['command']}"]
    if provenance["cells"]:
        hours = provenance["seconds"] / 3600
        unshared_hours = provenance["seconds_without_sharing"] / 3600
        sentences.append(
            f"{describe_run(provenance)} Preset {', '.join(provenance['presets'])}: {hours:.1f} h of stages, "
            f"{unshared_hours:.1f} h without sharing."
        )
    if provenance.get("taken"):
        taken_cells = provenance["taken"]
        sentences.append(f"Cells taken from an earlier report by the key of their evaluation: {taken_cells}.")
        for run in provenance["earlier"]:
            sentences.append(f"Of that report: {describe_run(run)}")
    if provenance.get("measured"):
        sentences.append(measured.describe_measurement(provenance["measured"]))
    return sentences + explain_missing_maps(report)


def describe_run(run: Mapping[str, Any]) -> str:
    """Cells that were computed together: when, with what, where."""
    versions = []
    for package, version in run["versions"].items():
        versions.append(f"{package} {version}")
    software = ", ".join(versions)
    return f"Cells computed: {run['cells']}, last finished {run['finished']}; {software}; {run['machine']}."


def caption_maps(report: Report) -> str:
    """Below the attention maps."""
    maps = report.provenance["maps"]
    return (
        f"Where {maps['of']} looks: the first test scenes with questions of two families "
        f"({', '.join(maps['scenes'])}); the redder a patch, the more weight."
    )


def explain_missing_maps(report: Report) -> list[str]:
    """A sentence where attention maps should be and could not."""
    reason = report.provenance.get("maps", {}).get("missing")
    return [f"No attention maps: {reason}"] if reason else []


def list_published_scores(report: Report) -> list[str]:
    """Scores that others have published, as sentences of their own, below tables of the paper."""
    if not is_of_paper(report):
        return []
    # a list at the top of the file: OmegaConf's type says it may be anything
    entries = cast(list[dict[str, Any]], OmegaConf.to_container(OmegaConf.load(PUBLISHED_FILE)))
    sentences = []
    for entry in entries:
        scores = ", ".join(f"{name} {score:g}" for name, score in entry["scores"].items())
        sentences.append(
            f"Published, not ours: {entry['what']} ({entry['source']}); other data and benchmarks "
            f"than the tables here: {scores}."
        )
    return sentences
