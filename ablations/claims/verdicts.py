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
    CONFIDENCE_LEVEL,
    RESAMPLES,
    RESAMPLING_SEED,
    OutcomesBySeed,
    RowComparison,
    compare_rows,
    compute_interval,
    predict_half_width,
    resample_means,
)

MAX_SEEDS = 1000  # seeds; an estimate beyond it is no advice
HOLDS, FAILS, UNRESOLVED, NO_RESULTS = "holds", "does not hold", "not resolved", "no results"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim. Estimate and interval in points, of the pair that decides: the smallest."""

    claim: Claim
    word: str
    note: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: tuple[RowComparison, ...] = ()


def judge_claims(
    claims: Sequence[Claim],
    outcomes: Mapping[str, OutcomesBySeed],
    families: NDArray,
    picture: NDArray,
    resamples: int = RESAMPLES,
    seed: int = RESAMPLING_SEED,
) -> list[Verdict]:
    """A verdict for each claim. `outcomes` by row label; `families` (Q,) and `picture` (Q,) of the questions.
    A row without results, or two that share no seed, leave a claim without verdict."""
    verdicts: dict[int, Verdict] = {}
    waiting: list[tuple[int, RowComparison, NDArray]] = []
    for number, claim in enumerate(claims):
        why = explain_missing_results(claim, outcomes, families)
        if why:
            verdicts[number] = Verdict(claim, NO_RESULTS, why)
            continue
        keep = np.isin(families, claim.families) if claim.families else np.ones(len(families), bool)
        for row, other in claim.pairs:
            waiting.append((number, *compare_rows(row, other, outcomes, keep, picture)))
    judged: dict[int, list[RowComparison]] = {}
    for number, pair in add_intervals(waiting, claims, resamples, seed):
        judged.setdefault(number, []).append(pair)
    verdicts |= {number: decide_verdict(claims[number], pairs) for number, pairs in judged.items()}
    return [verdicts[number] for number in sorted(verdicts)]


def explain_missing_results(claim: Claim, outcomes: Mapping[str, OutcomesBySeed], families: NDArray) -> str:
    """Why a claim cannot be judged at all; nothing if it can."""
    missing = [label for label in claim.rows if not outcomes.get(label)]
    if missing:
        return f"no results of {', '.join(missing)}"
    apart = [pair for pair in claim.pairs if not outcomes[pair[0]].keys() & outcomes[pair[1]].keys()]
    if apart:
        return f"{apart[0][0]} and {apart[0][1]} have no seed in common"
    unasked = set(claim.families) - set(families.tolist())
    return f"no questions of the family {', '.join(sorted(unasked))}" if unasked else ""


def add_intervals(
    waiting: Sequence[tuple[int, RowComparison, NDArray]], claims: Sequence[Claim], resamples: int, seed: int
) -> Iterator[tuple[int, RowComparison]]:
    """The pairs with their intervals. Those over as many pictures are resampled together. In a claim of K
    pairs the upper ends leave 1/K of the usual share out: one of them below is enough to refute it."""
    tail = (1 - CONFIDENCE_LEVEL) / 2
    for pictures in dict.fromkeys(pair.pictures for _, pair, _ in waiting):
        rng = np.random.default_rng(seed)
        alike = [each for each in waiting if each[1].pictures == pictures]
        draws = resample_means(np.stack([column for *_, column in alike], 1), resamples, rng)
        for (number, pair, _), means in zip(alike, draws.T):
            tails = tail, tail / len(claims[number].pairs)
            low, high = compute_interval(pair, means, tails, rng)
            yield number, replace(pair, low=low, high=high)


def decide_verdict(claim: Claim, pairs: Sequence[RowComparison]) -> Verdict:
    """The verdict on a claim whose pairs all have intervals."""
    low, high = min(p.low for p in pairs), min(p.high for p in pairs)
    if any(p.squares is None for p in pairs):
        word, note = UNRESOLVED, "one seed (or one picture) does not show what chance adds; run more"
    elif low > -claim.points:
        word, note = HOLDS, ""
    elif high < -claim.points:
        word, note = FAILS, ""
    else:
        word, note = UNRESOLVED, advise_on_runs(claim, pairs)
    return Verdict(claim, word, note, min(p.estimate for p in pairs), low, high, tuple(pairs))


def advise_on_runs(claim: Claim, pairs: Sequence[RowComparison]) -> str:
    """What would resolve a claim, if its differences are what they look like now."""
    worst = min(pairs, key=lambda p: p.estimate)
    open_pairs = [p for p in pairs if p.low <= -claim.points] if worst.estimate > -claim.points else [worst]
    needed = [count_seeds_needed(pair, claim.points) for pair in open_pairs]
    if None not in needed:
        return f"about {max(needed)} seeds would resolve it"
    pair = open_pairs[needed.index(None)]
    limit, gap = predict_half_width(pair, math.inf), abs(pair.estimate + claim.points)
    if gap > limit:
        return f"more than {MAX_SEEDS} seeds would be needed"
    times = math.ceil((limit / gap) ** 2) if gap else math.inf
    if times > MAX_SEEDS:
        return "no number of seeds or questions in reach would resolve it"
    return f"more seeds cannot resolve it, the questions decide; about {times} times as many would"


def count_seeds_needed(pair: RowComparison, points: float) -> int | None:
    """The fewest seeds, more than now, whose interval would leave the limit out; None if `MANY` would not."""
    gap = abs(pair.estimate + points)
    counts = range(len(pair.seeds) + 1, MAX_SEEDS + 1)
    return next((n for n in counts if predict_half_width(pair, n) < gap), None)
