"""A table's claims as a grid of words: a line a claim, with its verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ablations.claims.looks import Look, list_past_looks, plan_past_looks, take_first_seeds
from ablations.claims.spec import Claim
from ablations.claims.statistics import CONFIDENCE_LEVEL, OutcomesBySeed
from ablations.claims.verdicts import NO_RESULTS, UNRESOLVED, Verdict, decide_verdict, judge_claims
from ablations.outcomes import ReportTable
from ablations.writing.grids.number_words import format_interval, format_range, format_signed
from ablations.writing.grids.word_grid import WordGrid

CLAIMS_NOTE = (
    "Differences in percentage points of accuracy; intervals: 95 %, paired over test "
    "questions x seeds, the seeds' variance moderated by that of the table's other pairs (claims.csv has the "
    "intervals without, as own_low and own_high). A claim holds if its interval lies wholly on its side; it "
    "does not if one of its pairs lies wholly on the other, so that the upper ends of K pairs leave out "
    "2.5 %/K each. No correction for the number of claims. Remarks say what a verdict would be without "
    "moderation, and, where seeds were added after looks at a claim, what it is if all looks to ten seeds "
    "share the 5 % that one may be wrong (claims.csv: looks, corrected). Seeds that would resolve a claim: "
    "with a chance of 80 % if its differences are what they look like."
)


def judge_table(
    table: ReportTable, claims: Sequence[Claim], confidence: float = CONFIDENCE_LEVEL
) -> list[Verdict]:
    """Verdicts on claims about a table's rows. Seeds are told of by the pairs of the table's own claims, so
    that a difference has the same lower end wherever it is shown; the upper one is wider in a claim of
    several pairs."""
    return judge_outcomes(table, table.outcomes_by_label, claims, confidence)


def judge_outcomes(
    table: ReportTable, outcomes: Mapping[str, OutcomesBySeed], claims: Sequence[Claim], confidence: float
) -> list[Verdict]:
    """The same by these outcomes of the table's rows."""
    return judge_claims(
        claims,
        outcomes,
        table.families,
        table.picture_numbers,
        training_keys=table.training_by_label,
        confidence=confidence,
        left_out=table.left_out,
        evidence=table.claims,
    )


def judge_own_claims(table: ReportTable) -> list[Verdict]:
    """Verdicts on a table's own claims, as a report tells them."""
    return correct_for_looks(table, judge_table(table, table.claims))


def correct_for_looks(table: ReportTable, verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Verdicts on a table's claims, each with what it would be where earlier looks share the 5 %."""
    corrected = []
    for verdict in verdicts:
        if verdict.word != NO_RESULTS and list_looks_before(verdict):
            verdict = replace(verdict, corrected_word=find_corrected_word(table, verdict.claim))
        corrected.append(verdict)
    return corrected


def list_looks_before(verdict: Verdict) -> list[tuple[int, ...]]:
    """The looks at a claim before its verdict."""
    return list_past_looks(verdict.claim, [len(pair.seeds) for pair in verdict.pairs])


def find_corrected_word(table: ReportTable, claim: Claim) -> str:
    """The verdict of the first look at a claim that gives it one, when all looks share the 5 %."""
    outcomes = table.outcomes_by_label
    *past_looks, last_look = plan_past_looks(claim, outcomes)
    for pair_looks in past_looks:
        first_outcomes = take_first_seeds(claim, outcomes, [look.seeds for look in pair_looks])
        word = judge_pair_looks(table, first_outcomes, claim, pair_looks)
        if word != UNRESOLVED:
            return word
    return judge_pair_looks(table, outcomes, claim, last_look)


def judge_pair_looks(
    table: ReportTable, outcomes: Mapping[str, OutcomesBySeed], claim: Claim, pair_looks: Sequence[Look]
) -> str:
    """The verdict on a claim whose pairs each have the interval of their own look."""
    pairs_by_confidence = {}
    for confidence in {look.confidence for look in pair_looks}:
        pairs_by_confidence[confidence] = judge_outcomes(table, outcomes, [claim], confidence)[0].pairs
    pairs = [pairs_by_confidence[look.confidence][number] for number, look in enumerate(pair_looks)]
    return decide_verdict(claim, pairs, CONFIDENCE_LEVEL).word


def make_claims_grid(table: ReportTable, verdicts: Sequence[Verdict]) -> WordGrid:
    """The claims of a table; the pairs of a claim of several below it."""
    lines = []
    for verdict in verdicts:
        lines.append(("", make_claim_line(verdict)))
        if len(verdict.pairs) > 1:
            for pair in verdict.pairs:
                names = f"{pair.row} - {pair.other}"
                difference = format_signed(pair.estimate)
                lines.append(("", ["", names, difference, format_interval(pair), "", ""]))
    header = ["claim", "statement", "difference", "interval", "verdict", "remarks"]
    return WordGrid(f"{table.heading}: claims", header, lines)


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
    if verdict.is_corrected:
        # looks that differ in how many pairs have the most seeds read alike
        seeds = ", ".join(dict.fromkeys(map(format_seeds, list_looks_before(verdict))))
        remarks.append(f"corrected for looks with {seeds} seeds {verdict.corrected_word}")
    if claim.ours:
        remarks.append(f"ours: {claim.ours}")
    if claim.source:
        remarks.append(f"source: {claim.source}")
    interval = format_interval(verdict)
    return [claim.text, claim.statement, difference, interval, verdict.word, "; ".join(remarks)]


def format_seeds(seeds_by_pair: Sequence[int]) -> str:
    """How many seeds the pairs of a look had."""
    least = min(seeds_by_pair)
    most = max(seeds_by_pair)
    return str(most) if least == most else f"{least} to {most}"
