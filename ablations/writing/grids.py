"""A report as grids of words, whatever it is written in: each table's scores and claims, and their sum."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ablations.claims.statistics import compute_seed_interval
from ablations.claims.verdicts import FAILS, HOLDS, NO_RESULTS, UNRESOLVED, Verdict
from ablations.costs import measured
from ablations.costs.prefill import PREFILL_TEXT_TOKENS
from ablations.outcomes import Report, ReportRow, ReportTable

OURS_MARK = "†"
# column, key of a row's efficiency, how it is said
EFFICIENCY_COLUMNS = (
    ("visual tokens", "visual_tokens", "{:.0f}".format),
    ("left on average over layers", "average_visual_tokens", "{:.1f}".format),
    ("query tokens", "query_tokens", "{:.0f}".format),
    ("parameters added", "parameters_added", lambda n: format_amount(n)),
    ("prefill FLOPs", "prefill_flops", lambda n: format_amount(n)),
    ("TTFT ms", "ttft_ms", "{:.1f}".format),
    ("peak memory MiB", "peak_memory_mib", "{:.0f}".format),
)
MEASURED_COLUMNS = {"ttft_ms": "TTFT", "peak_memory_mib": "peak memory"}
SCORES_NOTE = (
    "Accuracy in %. ±: half the 95 % t-interval of the mean over seeds; none with one seed. "
    f"Prefill: one image, {PREFILL_TEXT_TOKENS} text tokens, tower included; a multiply-add is two operations."
)
CLAIMS_NOTE = (
    "Differences in percentage points of accuracy; intervals: 95 %, paired bootstrap over test "
    "questions x seeds. A claim holds if its interval lies wholly on its side. No correction for the "
    "number of claims."
)


@dataclass
class WordGrid:
    """A table of words: header, (block, cells) lines, notes below."""

    title: str
    header: list[str]
    lines: list[tuple[str, list[str]]]
    notes: list[str] = field(default_factory=list)


def format_amount(number: float) -> str:
    """1234567 -> 1.23 M."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def format_signed(number: float) -> str:
    return f"{number:+.1f}".replace("-0.0", "+0.0")


def find_efficiency_columns(table: ReportTable) -> list[tuple]:
    """The efficiency columns of which any row has a value."""
    return [each for each in EFFICIENCY_COLUMNS if any(each[1] in row.efficiency for row in table.rows)]


def make_scores_grid(table: ReportTable) -> WordGrid:
    """Accuracy and efficiency of a table's rows; the chance row first."""
    shown, families = find_efficiency_columns(table), table.family_names
    lines = []
    if table.chance:
        chance = [table.chance["families"].get(f, math.nan) for f in families]
        lines.append(
            (
                "",
                [
                    "chance",
                    "",
                    *(f"{100 * v:.1f}" for v in (table.chance["overall"], *chance)),
                    *("" for _ in shown),
                ],
            )
        )
    for row in table.rows:
        numbers = ["missing", *("" for _ in families)]
        if row.outcomes:
            means = [compute_seed_interval(table.compute_accuracies(row, f))[0] for f in families]
            numbers = [format_overall(table, row), *(f"{mean:.1f}" for mean in means)]
        costs = [format_value(row.efficiency.get(key), form) for _, key, form in shown]
        label = row.label + (OURS_MARK if row.ours else "")
        lines.append((row.block, [label, str(len(row.outcomes) or ""), *numbers, *costs]))
    header = ["", "seeds", "overall", *families, *(name for name, *_ in shown)]
    title = f"{table.heading}: {table.title}" if table.title else table.heading
    return WordGrid(title, header, lines, list_table_notes(table))


def format_value(value: float | None, form) -> str:
    return "" if value is None else form(value)


def format_overall(table: ReportTable, row: ReportRow) -> str:
    """Mean, and its ± where there are several seeds."""
    mean, half = compute_seed_interval(table.compute_accuracies(row))
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ±{half:.1f}"


def list_table_notes(table: ReportTable) -> list[str]:
    """Below a table: what is ours, what is missing, what was not measured."""
    found, why = [], {}
    for row in table.rows:
        if row.ours:
            why.setdefault(row.ours, []).append(row.label)
    found += [f"{OURS_MARK} {', '.join(labels)}: {reason}." for reason, labels in why.items()]
    missing = [f"{row.label} (seed {', '.join(map(str, row.missing))})" for row in table.rows if row.missing]
    if missing:
        found.append(f"Missing: {'; '.join(missing)}; {table.sweep} runs them.")
    blank = [
        word for key, word in MEASURED_COLUMNS.items() if all(key not in row.efficiency for row in table.rows)
    ]
    if blank and table.chance:
        found.append(f"Not measured: {', '.join(blank)}; measure=true measures them.")
    return found


def make_claims_grid(verdicts: Sequence[Verdict]) -> WordGrid:
    """The claims of a table; the pairs of a claim of several below it."""
    lines = []
    for each in verdicts:
        claim = each.claim
        remarks = "; ".join(filter(None, (each.note, claim.ours and f"ours: {claim.ours}")))
        limit = f" (limit {format_signed(-claim.points)})" if claim.points else ""
        difference = "" if each.word == NO_RESULTS else format_signed(each.estimate) + limit
        lines.append(
            ("", [claim.text, claim.statement, difference, format_interval(each), each.word, remarks])
        )
        for pair in each.pairs if len(each.pairs) > 1 else ():
            words = [
                "",
                f"{pair.row} - {pair.other}",
                format_signed(pair.estimate),
                format_interval(pair),
                "",
                "",
            ]
            lines.append(("", words))
    header = ["claim", "statement", "difference", "interval", "verdict", "remarks"]
    sources = sorted({each.claim.source for each in verdicts})
    return WordGrid(f"Claims of {', '.join(sources)}", header, lines)


def format_interval(each) -> str:
    """The interval of a verdict or pair."""
    return "" if math.isnan(each.low) else f"{format_signed(each.low)} to {format_signed(each.high)}"


def summarize_claims(report: Report, verdicts: dict[str, list[Verdict]]) -> list[str]:
    """Sentences: what the claims came to, and each that the runs contradict."""
    every = [(table, each) for table in report.tables for each in verdicts[table.name]]
    counts = {
        word: sum(each.word == word for _, each in every) for word in (HOLDS, FAILS, UNRESOLVED, NO_RESULTS)
    }
    if not every:
        return ["These tables make no claims."]
    said = "; ".join(f"{word}: {count}" for word, count in counts.items() if count)
    found = [f"{len(every)} claims. {said[:1].upper()}{said[1:]}."]
    if not counts[FAILS]:
        return [*found, "These runs contradict none of them."]
    found.append("These runs disagree with the paper:")
    found += [
        f'- {table.heading}: "{each.claim.text}" does not hold here ({each.claim.statement}; the '
        f"difference is {format_signed(each.estimate)}, {format_interval(each)})."
        for table, each in every
        if each.word == FAILS
    ]
    return found


def describe_provenance(report: Report) -> list[str]:
    """Sentences: how the report came about."""
    made, found = report.made, []
    if not made.get("cells") and not made.get("taken"):
        return []
    if made["cells"]:
        spent, unshared = (made[key] / 3600 for key in ("seconds", "seconds_without_sharing"))
        presets = ", ".join(made["presets"])
        found = [
            f"{describe_run(made)} Preset {presets}: {spent:.1f} h of stages, {unshared:.1f} h without sharing."
        ]
    if made.get("taken"):
        found += [
            f"Cells taken from an earlier report by the key of their evaluation: {made['taken']}.",
            *(f"Of that report: {describe_run(run)}" for run in made["earlier"]),
        ]
    return [
        f"Command: {made['command']}",
        *found,
        *([measured.describe_measurement(made["measured"])] if made.get("measured") else []),
        *explain_missing_maps(report),
    ]


def describe_run(run: Mapping[str, Any]) -> str:
    """Cells that were computed together: when, with what, where."""
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
    return f"Cells computed: {run['cells']}, last finished {run['finished']}; {versions}; {run['machine']}."


def caption_maps(report: Report) -> str:
    """Below the attention maps."""
    return (
        f"Where {report.made['maps']['of']} looks: the first test scenes with questions of two families "
        f"({', '.join(report.made['maps']['scenes'])}); the redder a patch, the more weight."
    )


def explain_missing_maps(report: Report) -> list[str]:
    """A sentence where attention maps should be and could not."""
    missing = report.made.get("maps", {}).get("missing")
    return [f"No attention maps: {missing}"] if missing else []


def list_published_scores() -> list[str]:
    """Scores that others have published, as sentences of their own."""
    found = []
    for each in OmegaConf.to_container(OmegaConf.load(Path(__file__).parents[1] / "published.yaml")):
        scores = ", ".join(f"{name} {score:g}" for name, score in each["scores"].items())
        found.append(
            f"Published, not ours: {each['what']} ({each['source']}); other data and benchmarks "
            f"than the tables here: {scores}."
        )
    return found
