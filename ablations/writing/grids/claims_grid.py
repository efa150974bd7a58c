"""A table's claims as a grid of words: a line a claim, with its verdict."""

from collections.abc import Sequence

from ablations.claims.spec import Claim
from ablations.claims.statistics import CONFIDENCE_LEVEL
from ablations.claims.verdicts import NO_RESULTS, Verdict, judge_claims
from ablations.outcomes import ReportTable
from ablations.writing.grids.number_words import format_interval, format_range, format_signed
from ablations.writing.grids.word_grid import WordGrid

CLAIMS_NOTE = (
    "Differences in percentage points of accuracy; intervals: 95 %, paired bootstrap over test "
    "questions x seeds, the seeds' variance moderated by that of the table's other pairs (claims.csv has the "
    "intervals without, as own_low and own_high). A claim holds if its interval lies wholly on its side; it "
    "does not if one of its pairs lies wholly on the other, so that the upper ends of K pairs leave out "
    "2.5 %/K each. No correction for the number of claims. Moderation and ties are judged afterwards: they "
    "came when seeds 0 to 2 had been seen. Remarks say what a verdict would be without moderation."
)


def judge_table(
    table: ReportTable, claims: Sequence[Claim], confidence: float = CONFIDENCE_LEVEL
) -> list[Verdict]:
    """Verdicts on claims about a table's rows. Seeds are told of by the pairs of the table's own claims, so
    that a difference has the same lower end wherever it is shown; the upper one is wider in a claim of
    several pairs."""
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
