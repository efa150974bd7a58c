"""Sentences of a whole report: what its claims came to, how it came about, what others have published."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from ablations.claims.verdicts import FAILS, HOLDS, NO_RESULTS, TIE, UNRESOLVED, Verdict
from ablations.costs import measured
from ablations.outcomes import Report, ReportTable
from ablations.writing.grids.number_words import format_interval, format_signed
from experiments.config.table_files import list_paper_tables

PUBLISHED_FILE = Path(__file__).parents[2] / "published.yaml"


def summarize_claims(report: Report, verdicts: Mapping[str, Sequence[Verdict]]) -> list[str]:
    """Sentences: what the claims came to, and each that the runs contradict; none without claims."""
    counts = dict.fromkeys((HOLDS, FAILS, TIE, UNRESOLVED, NO_RESULTS), 0)
    changed_counts: Counter[str] = Counter()
    contradictions = []
    for table in report.tables:
        for verdict in verdicts[table.name]:
            counts[verdict.word] += 1
            if verdict.is_corrected:
                changed_counts[f"{verdict.word}, then {verdict.corrected_word}"] += 1
            if verdict.word == FAILS:
                contradictions.append(describe_contradiction(table, verdict))
    total = sum(counts.values())
    if not total:
        return []
    tally = "; ".join(f"{word}: {count}" for word, count in counts.items() if count)
    first_letter = tally[:1].upper()
    claims = "1 claim" if total == 1 else f"{total} claims"
    sentences = [f"{claims}. {first_letter}{tally[1:]}."]
    if changed_counts:
        changes = "; ".join(f"{words}: {count}" for words, count in sorted(changed_counts.items()))
        sentences.append(f"Of these other verdicts if earlier looks are corrected for: {changes}.")
    if not contradictions:
        return [*sentences, "These runs contradict none of them."]
    return [*sentences, "These runs contradict:", *contradictions]


def is_of_paper(report: Report) -> bool:
    """Whether any table is one of the paper's."""
    names = list_paper_tables()
    return any(table.name in names and table.heading == f"Table {table.name}" for table in report.tables)


def describe_contradiction(table: ReportTable, verdict: Verdict) -> str:
    """A line of a list: a claim that does not hold, and by how much."""
    corrected = ""
    if verdict.is_corrected:
        corrected = f"; {verdict.corrected_word} if earlier looks are corrected for"
    return (
        f'- {table.heading}: "{verdict.claim.text}" ({verdict.claim.source}) does not hold here '
        f"({verdict.claim.statement}; the difference is {format_signed(verdict.estimate)}, "
        f"{format_interval(verdict)}{corrected})."
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
        for alike_runs in group_alike_runs(provenance["earlier"]):
            sentences.append(f"Of that report: {describe_runs(alike_runs)}")
    if provenance.get("measured"):
        sentences.append(measured.describe_measurement(provenance["measured"]))
    return sentences + explain_missing_maps(report)


def group_alike_runs(runs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Runs with the same software on the same machine together; groups in the order of their first runs."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(describe_surroundings(run), []).append(run)
    return list(groups.values())


def describe_runs(alike_runs: Sequence[Mapping[str, Any]]) -> str:
    """Runs of one group. Their cells are not added up: two reports may have seen the same folder."""
    if len(alike_runs) == 1:
        return describe_run(alike_runs[0])
    times = sorted(run["finished"] for run in alike_runs)
    surroundings = describe_surroundings(alike_runs[0])
    return f"{len(alike_runs)} runs, finished {times[0]} to {times[-1]}; {surroundings}."


def describe_run(run: Mapping[str, Any]) -> str:
    """Cells that were computed together: when, with what, where."""
    return f"Cells computed: {run['cells']}, last finished {run['finished']}; {describe_surroundings(run)}."


def describe_surroundings(run: Mapping[str, Any]) -> str:
    """The software and the machine of a run."""
    words = []
    for package, version in run["versions"].items():
        words.append(f"{package} {version}")
    return f"{', '.join(words)}; {run['machine']}"


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
