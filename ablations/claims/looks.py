"""Looking at claims several times while seeds are added, without deciding more of them by chance.

Whoever adds seeds until an interval leaves zero out is wrong more often than the interval says. So the looks
are fixed beforehand, and share the 5 % that one look may be wrong: each spends as much of it as the seeds
that it adds are of the last look's (a Bonferroni correction with unequal parts, which holds however the looks
depend on each other). A claim keeps the verdict of the first look that gives it one.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ablations.claims.statistics import CONFIDENCE_LEVEL
from ablations.claims.verdicts import UNRESOLVED, Verdict, predict_word

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
    if any(pair.pictures == 1 for pair in verdict.pairs):
        return False  # no interval that a single picture has decides anything
    if any(pair.squares is None for pair in verdict.pairs):
        return True  # a single seed: no spread has been seen
    for look in looks:
        if predict_word(verdict.claim, verdict.pairs, look.seeds, look.confidence) != UNRESOLVED:
            return True
    return False
