"""Verdicts on claims: holds where the interval lies wholly on the claim's side, does not hold where it lies
wholly on the other, not resolved otherwise, then with what would resolve it.

Claims are judged one by one, without correction for how many there are.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ablations.claims.spec import Claim
from ablations.claims.statistics import (
    LEVEL,
    RESAMPLES,
    SEED,
    Outcomes,
    Pair,
    compare,
    half_width,
    interval,
    resampled,
)

MANY = 1000  # seeds; an estimate beyond it is no advice
HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "not resolved", "no results"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim. Estimate and interval in points, of the pair that decides: the smallest."""

    claim: Claim
    word: str
    note: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: tuple[Pair, ...] = ()


def judge(
    claims: Sequence[Claim],
    outcomes: Mapping[str, Outcomes],
    families: NDArray,
    picture: NDArray,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> list[Verdict]:
    """A verdict for each claim. `outcomes` by row label; `families` (Q,) and `picture` (Q,) of the questions.
    A row without results, or two that share no seed, leave a claim without verdict."""
    verdicts: dict[int, Verdict] = {}
    waiting: list[tuple[int, Pair, NDArray]] = []
    for number, claim in enumerate(claims):
        why = lacking(claim, outcomes, families)
        if why:
            verdicts[number] = Verdict(claim, MISSING, why)
            continue
        keep = np.isin(families, claim.families) if claim.families else np.ones(len(families), bool)
        for row, other in claim.pairs:
            waiting.append((number, *compare(row, other, outcomes, keep, picture)))
    judged: dict[int, list[Pair]] = {}
    for number, pair in with_intervals(waiting, claims, resamples, seed):
        judged.setdefault(number, []).append(pair)
    verdicts |= {number: verdict(claims[number], pairs) for number, pairs in judged.items()}
    return [verdicts[number] for number in sorted(verdicts)]


def lacking(claim: Claim, outcomes: Mapping[str, Outcomes], families: NDArray) -> str:
    """Why a claim cannot be judged at all; nothing if it can."""
    missing = [label for label in claim.rows if not outcomes.get(label)]
    if missing:
        return f"no results of {', '.join(missing)}"
    apart = [pair for pair in claim.pairs if not outcomes[pair[0]].keys() & outcomes[pair[1]].keys()]
    if apart:
        return f"{apart[0][0]} and {apart[0][1]} have no seed in common"
    unasked = set(claim.families) - set(families.tolist())
    return f"no questions of the family {', '.join(sorted(unasked))}" if unasked else ""


def with_intervals(
    waiting: Sequence[tuple[int, Pair, NDArray]], claims: Sequence[Claim], resamples: int, seed: int
) -> Iterator[tuple[int, Pair]]:
    """The pairs with their intervals. Those over as many pictures are resampled together. In a claim of K
    pairs the upper ends leave 1/K of the usual share out: one of them below is enough to refute it."""
    tail = (1 - LEVEL) / 2
    for pictures in dict.fromkeys(pair.pictures for _, pair, _ in waiting):
        rng = np.random.default_rng(seed)
        alike = [each for each in waiting if each[1].pictures == pictures]
        draws = resampled(np.stack([column for *_, column in alike], 1), resamples, rng)
        for (number, pair, _), means in zip(alike, draws.T):
            tails = tail, tail / len(claims[number].pairs)
            low, high = interval(pair, means, tails, rng)
            yield number, replace(pair, low=low, high=high)


def verdict(claim: Claim, pairs: Sequence[Pair]) -> Verdict:
    """The verdict on a claim whose pairs all have intervals."""
    low, high = min(p.low for p in pairs), min(p.high for p in pairs)
    if any(p.squares is None for p in pairs):
        word, note = OPEN, "one seed (or one picture) does not show what chance adds; run more"
    elif low > -claim.points:
        word, note = HOLDS, ""
    elif high < -claim.points:
        word, note = FAILS, ""
    else:
        word, note = OPEN, advice(claim, pairs)
    return Verdict(claim, word, note, min(p.estimate for p in pairs), low, high, tuple(pairs))


def advice(claim: Claim, pairs: Sequence[Pair]) -> str:
    """What would resolve a claim, if its differences are what they look like now."""
    worst = min(pairs, key=lambda p: p.estimate)
    open_pairs = [p for p in pairs if p.low <= -claim.points] if worst.estimate > -claim.points else [worst]
    needed = [seeds_needed(pair, claim.points) for pair in open_pairs]
    if None not in needed:
        return f"about {max(needed)} seeds would resolve it"
    pair = open_pairs[needed.index(None)]
    limit, gap = half_width(pair, math.inf), abs(pair.estimate + claim.points)
    if gap > limit:
        return f"more than {MANY} seeds would be needed"
    times = math.ceil((limit / gap) ** 2) if gap else math.inf
    if times > MANY:
        return "no number of seeds or questions in reach would resolve it"
    return f"more seeds cannot resolve it, the questions decide; about {times} times as many would"


def seeds_needed(pair: Pair, points: float) -> int | None:
    """The fewest seeds, more than now, whose interval would leave the limit out; None if `MANY` would not."""
    gap = abs(pair.estimate + points)
    counts = range(len(pair.seeds) + 1, MANY + 1)
    return next((n for n in counts if half_width(pair, n) < gap), None)
