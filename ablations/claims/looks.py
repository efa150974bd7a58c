"""Looking at claims several times while seeds are added, without deciding more of them by chance.

Whoever adds seeds until an interval leaves zero out is wrong more often than the interval says. So the looks
are fixed beforehand, and share the 5 % that one look may be wrong: each spends as much of it as the seeds
that it adds are of the last look's (a Bonferroni correction with unequal parts, which holds however the looks
depend on each other). A claim keeps the verdict of the first look that gives it one.

Who has looked at other numbers of seeds than were planned shares the 5 % in the same way, among `SEED_LIMIT`
seeds: what a look spends does not depend on those that follow.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ablations.claims import SEED_LIMIT
from ablations.claims.gains import list_common_seeds
from ablations.claims.spec import Claim
from ablations.claims.statistics import CONFIDENCE_LEVEL, OutcomesBySeed
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
    return share_error(counts, limit)


def share_error(counts: Sequence[int], limit: int) -> list[Look]:
    """Looks with so many seeds each, which share the 5 % that one look to `limit` seeds may be wrong."""
    looks = []
    seeds_before = 0
    for count in counts:
        share = (count - seeds_before) / limit
        looks.append(Look(count, 1 - (1 - CONFIDENCE_LEVEL) * share))
        seeds_before = count
    return looks


def plan_past_looks(claim: Claim, outcomes: Mapping[str, OutcomesBySeed]) -> list[Look]:
    """The looks at a claim so far, that at these outcomes the last; one where it is the first."""
    seeds = len(list_common_seeds(claim.row_labels, outcomes))
    if not claim.looks:
        return [Look(seeds, CONFIDENCE_LEVEL)]
    return share_error([*claim.looks, seeds], max(SEED_LIMIT, seeds))


def recall_looks(
    claim: Claim, outcomes: Mapping[str, OutcomesBySeed], earlier_looks: Iterable[int]
) -> tuple[int, ...]:
    """Of looks with so many seeds those that come before the one at these outcomes. One with a single seed
    decides nothing, and is none."""
    seeds = len(list_common_seeds(claim.row_labels, outcomes))
    return tuple(sorted({look for look in earlier_looks if 1 < look < seeds}))


def take_first_seeds(
    claim: Claim, outcomes: Mapping[str, OutcomesBySeed], count: int
) -> dict[str, OutcomesBySeed]:
    """Rows with their first `count` seeds; those of the claim with the first that they have in common."""
    common_seeds = list_common_seeds(claim.row_labels, outcomes)
    first_outcomes: dict[str, OutcomesBySeed] = {}
    for label, row_outcomes in outcomes.items():
        seeds = common_seeds if label in claim.row_labels else sorted(row_outcomes)
        first_outcomes[label] = {seed: row_outcomes[seed] for seed in seeds[:count]}
    return first_outcomes


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
