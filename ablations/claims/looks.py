"""Looking at claims several times while seeds are added, without deciding more of them by chance.

Whoever adds seeds until an interval leaves zero out is wrong more often than the interval says. So the looks
are fixed beforehand, and share the 5 % that one look may be wrong: each spends as much of it as the seeds
that it adds are of the last look's (a Bonferroni correction with unequal parts, which holds however the looks
depend on each other). A claim keeps the verdict of the first look that gives it one.

Who has looked at other numbers of seeds than were planned shares the 5 % in the same way, among `SEED_LIMIT`
seeds: what a look spends does not depend on those that follow. Such a look is a report that could decide the
claim; it is told by how many seeds each of the claim's pairs had, since seeds may be added to some of them.
Each pair has its 5 % to share: a claim is wrongly said to hold only if one that does not is said to, and the
pairs share the upper ends already.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from ablations.claims import SEED_LIMIT
from ablations.claims.gains import list_common_seeds
from ablations.claims.spec import Claim
from ablations.claims.statistics import CONFIDENCE_LEVEL, OutcomesBySeed
from ablations.claims.verdicts import UNRESOLVED, Verdict, predict_word
from experiments.store.keys import digest_value

TrainedPair = tuple[str, str, str]  # a pair, and the digest of its rows' training; nothing where unknown
SeedsByPair = frozenset[tuple[TrainedPair, int]]  # a look: a claim's pairs with their seeds
TrainingByLabel = Mapping[str, Sequence[str]]  # row -> keys of its training stages

DIGEST_LETTERS = 16
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


def plan_past_looks(claim: Claim, outcomes: Mapping[str, OutcomesBySeed]) -> list[tuple[Look, ...]]:
    """The looks at a claim so far, that at these outcomes the last, each by the looks at its pairs; one where
    it is the first. A pair whose seeds stay is not looked at again: its look spends what it has spent."""
    seeds_now = count_seeds(claim, outcomes)
    past_looks = list_past_looks(claim, seeds_now)
    if not past_looks:
        return [tuple(Look(seeds, CONFIDENCE_LEVEL) for seeds in seeds_now)]
    all_looks = [*past_looks, seeds_now]
    looks_by_pair = []
    for pair_counts in zip(*all_looks):
        counts = sorted(set(pair_counts) - {0})
        pair_looks = share_error(counts, max(SEED_LIMIT, *pair_counts))
        looks_by_pair.append({look.seeds: look for look in pair_looks})
    planned_looks = []
    for seeds_by_pair in all_looks:
        if all(seeds_by_pair):  # one before a pair joined the claim could not decide it
            pair_looks = [looks[seeds] for looks, seeds in zip(looks_by_pair, seeds_by_pair)]
            planned_looks.append(tuple(pair_looks))
    return planned_looks


def list_past_looks(claim: Claim, seeds_now: Sequence[int]) -> list[tuple[int, ...]]:
    """The noted looks after which a pair was given seeds, in order, with those of their seeds that the pairs
    have now: a report may have fewer than one before it."""
    past_looks = set()
    for seeds_by_pair in claim.looks:
        if any(0 < seeds < now for seeds, now in zip(seeds_by_pair, seeds_now)):
            past_looks.add(tuple(map(min, seeds_by_pair, seeds_now)))
    return sorted(past_looks)


def recall_looks(
    claim: Claim,
    outcomes: Mapping[str, OutcomesBySeed],
    training: TrainingByLabel,
    earlier_looks: Iterable[SeedsByPair],
) -> tuple[tuple[int, ...], ...]:
    """Earlier looks as the claim notes them, but for one that is like that at these outcomes. They may be of
    other pairs, where rows have joined or left the claim since, or are trained otherwise."""
    trained_pairs = list_trained_pairs(claim, training)
    noted_looks = set()
    for earlier_look in earlier_looks:
        noted_looks.add(tuple(count_seen_seeds(earlier_look, pair) for pair in trained_pairs))
    seeds_now = count_seeds(claim, outcomes)
    if can_decide(seeds_now):  # `note_look` adds it
        noted_looks.discard(seeds_now)
    return tuple(look for look in sorted(noted_looks) if any(look))


def count_seen_seeds(look: SeedsByPair, trained_pair: TrainedPair) -> int:
    """How many seeds a pair had at a look; 0 where its rows were not looked at, or others of their names."""
    *pair, training = trained_pair
    for (*seen_pair, seen_training), seeds in look:
        is_known = seen_training and training
        if seen_pair == pair and (seen_training == training or not is_known):
            return seeds
    return 0


def note_look(
    claim: Claim, outcomes: Mapping[str, OutcomesBySeed], training: TrainingByLabel
) -> set[SeedsByPair]:
    """All looks at a claim, that at these outcomes among them if it could decide it."""
    looks = set(claim.looks)
    seeds_now = count_seeds(claim, outcomes)
    if can_decide(seeds_now):
        looks.add(seeds_now)
    trained_pairs = list_trained_pairs(claim, training)
    return {frozenset(zip(trained_pairs, look)) for look in looks}


def list_trained_pairs(claim: Claim, training: TrainingByLabel) -> list[TrainedPair]:
    """A claim's pairs, and how their rows were trained."""
    trained_pairs = []
    for (row, other), labels in zip(claim.pairs, list_pair_rows(claim)):
        keys = [training.get(label, ()) for label in labels]
        digest = digest_value(keys)[:DIGEST_LETTERS] if all(keys) else ""
        trained_pairs.append((row, other, digest))
    return trained_pairs


def can_decide(seeds_by_pair: Sequence[int]) -> bool:
    """Whether a look with so many seeds decides anything: a single one shows no spread."""
    return all(seeds > 1 for seeds in seeds_by_pair)


def count_seeds(claim: Claim, outcomes: Mapping[str, OutcomesBySeed]) -> tuple[int, ...]:
    """How many seeds the rows of each pair have in common."""
    return tuple(len(list_common_seeds(rows, outcomes)) for rows in list_pair_rows(claim))


def list_pair_rows(claim: Claim) -> list[tuple[str, ...]]:
    """The rows of each pair; all of them where sums of gains are compared."""
    if claim.gain_sums:
        return [claim.row_labels] * len(claim.pairs)
    return list(claim.pairs)


def take_first_seeds(
    claim: Claim, outcomes: Mapping[str, OutcomesBySeed], seeds_by_pair: Sequence[int]
) -> dict[str, OutcomesBySeed]:
    """Rows with the first seeds that each pair of the claim has in common, as many as are given for it; other
    rows with as many as the most."""
    kept_seeds: dict[str, set[int]] = {}
    for rows, count in zip(list_pair_rows(claim), seeds_by_pair):
        common_seeds = list_common_seeds(rows, outcomes)
        for label in rows:
            kept_seeds.setdefault(label, set()).update(common_seeds[:count])
    first_outcomes: dict[str, OutcomesBySeed] = {}
    for label, row_outcomes in outcomes.items():
        seeds = sorted(row_outcomes)
        first_seeds = sorted(kept_seeds.get(label, seeds[: max(seeds_by_pair)]))
        first_outcomes[label] = {seed: row_outcomes[seed] for seed in first_seeds}
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
