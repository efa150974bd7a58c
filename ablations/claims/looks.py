"""Looking at claims several times while seeds are added, without deciding more of them by chance.

Whoever adds seeds until an interval leaves zero out is wrong more often than the interval says. So the looks
are fixed beforehand, and share the 5 % that one look may be wrong: each spends as much of it as the seeds
that it adds are of the last look's (a Bonferroni correction with unequal parts, which holds however the looks
depend on each other). A claim keeps the verdict of the first look that gives it one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ablations.claims.statistics import CONFIDENCE_LEVEL, predict_half_width
from ablations.claims.verdicts import NO_RESULTS, UNRESOLVED, Verdict, judge_interval

GROWTH = 2  # by which seeds grow from look to look; more looks share the same 5 %


class Look(NamedTuple):
    """A look at claims with `seeds` seeds, by intervals of this confidence."""

    seeds: int
    confidence: float


def plan_looks(first: int, limit: int) -> list[Look]:
    """Looks from the first number of seeds to the last, each with about twice the seeds of the one before."""
    counts = [first]
    while counts[-1] < limit:
        counts.append(min(GROWTH * counts[-1], limit))
    looks = []
    seeds_before = 0
    for count in counts:
        share = (count - seeds_before) / limit
        looks.append(Look(count, 1 - (1 - CONFIDENCE_LEVEL) * share))
        seeds_before = count
    return looks


def can_seeds_decide(verdict: Verdict, looks: Sequence[Look]) -> bool:
    """Whether one of the looks to come would decide an open claim if its differences stayed what they are."""
    if verdict.word == NO_RESULTS:
        return True  # which nothing is known of yet
    if any(pair.squares is None for pair in verdict.pairs):
        return True  # no spread has been seen
    for look in looks:
        lows = []
        highs = []
        for pair in verdict.pairs:
            half = predict_half_width(pair, look.seeds, look.confidence)
            lows.append(pair.estimate - half)
            highs.append(pair.estimate + half)
        # as `decide_verdict`: a claim is as sure as the least sure of its pairs
        if judge_interval(verdict.claim, min(lows), min(highs)) != UNRESOLVED:
            return True
    return False
