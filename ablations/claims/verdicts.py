"""Verdicts on claims: holds where the interval lies wholly on the claim's side, does not hold where it lies
wholly on the other; a tie where it lies within the table's margin; not resolved otherwise, then with what
would resolve it.

Claims are judged one by one, without correction for how many there are.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from ablations.claims.gains import GainSum, combine_outcomes
from ablations.claims.moderation import PairComparer
from ablations.claims.spec import Claim
from ablations.claims.statistics import (
    CONFIDENCE_LEVEL,
    OutcomesBySeed,
    RowComparison,
    compute_interval,
    predict_distance,
)

MAX_SEEDS = 1000  # seeds; an estimate beyond it is no advice
POWER = 0.8  # the chance to resolve a claim with as many seeds as are advised
HOLDS = "holds"
FAILS = "does not hold"
TIE = "tie"
UNRESOLVED = "not resolved"
NO_RESULTS = "no results"


@dataclass(frozen=True)
class Verdict:
    """What became of a claim. Estimate and interval in points, of the pair that decides: the smallest.
    `corrected_word`: the verdict where earlier looks at the claim are corrected for; nothing without any."""

    claim: Claim
    word: str
    note: str = ""
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    pairs: tuple[RowComparison, ...] = ()
    corrected_word: str = ""

    @property
    def is_corrected(self) -> bool:
        """Whether another verdict is left where earlier looks are corrected for."""
        return self.corrected_word not in ("", self.word)

    @property
    def own_low(self) -> float:
        """The interval's lower end from each pair's own seeds alone, without what other pairs tell."""
        return min((pair.own_low for pair in self.pairs), default=math.nan)

    @property
    def own_high(self) -> float:
        """The upper end of that interval."""
        return min((pair.own_high for pair in self.pairs), default=math.nan)

    @property
    def own_word(self) -> str:
        """The verdict that this interval would give."""
        if math.isnan(self.own_low) or any(pair.squares is None for pair in self.pairs):
            return self.word
        return judge_interval(self.claim, self.own_low, self.own_high)


def judge_claims(
    claims: Sequence[Claim],
    outcomes: Mapping[str, OutcomesBySeed],
    families: NDArray,
    picture: NDArray,
    training_keys: Mapping[str, Sequence[str]] | None = None,
    confidence: float = CONFIDENCE_LEVEL,
    left_out: Sequence[str] = (),
    evidence: Sequence[Claim] = (),
) -> list[Verdict]:
    """A verdict for each claim. `outcomes` by row label; `families` (Q,) and `picture` (Q,) of the questions;
    `training_keys`, by label as well, are of a row's training stages, which rows may share; `left_out`:
    labels of rows that nobody asked for. Such a row, one without results, or two that share no seed, leave a
    claim without verdict. `evidence`: claims whose pairs tell of the others' seeds, these where none are
    given."""
    gain_sums: dict[str, GainSum] = {}  # by name: a claim may be its own evidence
    for claim in [*claims, *evidence]:
        for gain_sum in claim.gain_sums:
            gain_sums[gain_sum.name] = gain_sum
    outcomes = dict(outcomes)  # of rows, and from here on of sums of gains
    for gain_sum in gain_sums.values():
        outcomes[gain_sum.name] = combine_outcomes(gain_sum, outcomes)
    label_pairs = list_pairs([*claims, *evidence])
    comparer = PairComparer(
        label_pairs, outcomes, picture, training_keys or {}, gain_sums.values(), list_pairs(evidence)
    )
    verdicts = []
    for claim in claims:
        reason = explain_missing_results(claim, outcomes, families, left_out)
        if reason:
            verdicts.append(Verdict(claim, NO_RESULTS, reason))
            continue
        counted = np.ones(len(families), bool)
        if claim.families:
            counted = np.isin(families, claim.families)
        tails = compute_tails(confidence, len(claim.pairs))
        pairs = []
        for row, other in claim.pairs:
            pairs.append(add_intervals(comparer.compare(row, other, counted), tails))
        verdicts.append(decide_verdict(claim, pairs, confidence))
    return verdicts


def list_pairs(claims: Iterable[Claim]) -> list[tuple[str, str]]:
    """The pairs of rows, and of sums of gains, that claims are about."""
    label_pairs: list[tuple[str, str]] = []
    for claim in claims:
        label_pairs += [*claim.row_pairs, *claim.pairs]
    return label_pairs


def explain_missing_results(
    claim: Claim, outcomes: Mapping[str, OutcomesBySeed], families: NDArray, left_out: Sequence[str]
) -> str:
    """Why a claim cannot be judged at all; nothing if it can."""
    unasked_rows = [label for label in claim.row_labels if label in left_out]
    if unasked_rows:
        return f"left out by rows=: {', '.join(unasked_rows)}"
    empty_rows = [label for label in claim.row_labels if not outcomes.get(label)]
    if empty_rows:
        return f"no results of {', '.join(empty_rows)}"
    # the rows of sums of gains first: they are what a reader can run
    for row, other in list_pairs([claim]):
        if not outcomes[row].keys() & outcomes[other].keys():
            return f"{row} and {other} have no seed in common"
    absent_families = set(claim.families) - set(families.tolist())
    if absent_families:
        return f"no questions of the family {', '.join(sorted(absent_families))}"
    return ""


def add_intervals(pair: RowComparison, tails: tuple[float, float]) -> RowComparison:
    """A pair with its interval, and with that from its own seeds alone."""
    low, high = compute_interval(pair, tails)
    own_low, own_high = compute_interval(replace(pair, prior=None), tails)
    return replace(pair, low=low, high=high, own_low=own_low, own_high=own_high)


def compute_tails(confidence: float, claim_pairs: int) -> tuple[float, float]:
    """What the intervals of a claim's pairs leave out below and above. One pair that lies below refutes the
    claim, and chance has as many ways to as there are pairs: the upper ends share what they leave out."""
    tail = (1 - confidence) / 2
    return tail, tail / claim_pairs


def decide_verdict(claim: Claim, pairs: Sequence[RowComparison], confidence: float) -> Verdict:
    """The verdict on a claim whose pairs all have intervals."""
    # each pair has to hold, so the claim is as sure as the least sure of them
    low = high = estimate = math.inf
    shows_spread = True
    for pair in pairs:
        low = min(low, pair.low)
        high = min(high, pair.high)
        estimate = min(estimate, pair.estimate)
        if pair.squares is None:
            shows_spread = False
    note = ""
    if shows_spread:
        word = judge_interval(claim, low, high)
        if word == TIE:
            unit = "point" if claim.tie == 1 else "points"
            note = f"within {claim.tie:g} {unit}: {claim.tie_reason}"
        elif word == UNRESOLVED:
            note = advise_on_runs(claim, pairs, confidence)
    else:
        word = UNRESOLVED
        note = "one seed (or one picture) does not show what chance adds; run more"
    return Verdict(claim, word, note, estimate, low, high, tuple(pairs))


def judge_interval(claim: Claim, low: float, high: float) -> str:
    """What an interval says of a claim: the least ends of its pairs."""
    if low > -claim.points:
        return HOLDS
    if high < -claim.points:
        return FAILS
    # no pair is below by the margin, and one at least is not above by it
    if -claim.tie < low and high < claim.tie:
        return TIE
    return UNRESOLVED


def predict_word(
    claim: Claim, pairs: Sequence[RowComparison], seeds: float, confidence: float, power: float = 0.5
) -> str:
    """The verdict that so many seeds would give, with a chance of `power`, if the differences in truth are
    what they look like; with an even chance if they stay what they are."""
    lower_tail, upper_tail = compute_tails(confidence, len(pairs))
    lows = []
    highs = []
    for pair in pairs:
        pair_seeds = max(seeds, len(pair.seeds))
        lows.append(pair.estimate - predict_reach(pair, pair_seeds, lower_tail, power))
        highs.append(pair.estimate + predict_reach(pair, pair_seeds, upper_tail, power))
    # as `decide_verdict`: a claim is as sure as the least sure of its pairs
    return judge_interval(claim, min(lows), min(highs))


def predict_reach(pair: RowComparison, seeds: float, tail: float, power: float) -> float:
    """How far from the truth, in points, an interval's end that leaves out `tail` stays with a chance of
    `power`: its distance from the estimate, and by how much that one is unlucky."""
    standard_error = predict_distance(pair, seeds, float(ndtr(-1)))
    return predict_distance(pair, seeds, tail) + float(ndtri(power)) * standard_error


def advise_on_runs(claim: Claim, pairs: Sequence[RowComparison], confidence: float) -> str:
    """What would resolve a claim, if its differences are what they look like now."""
    if all(pair.squares is not None and not any(pair.squares) and not pair.estimate for pair in pairs):
        return "these rows answer every question alike, at every seed: they may be one cell"
    needed_seeds = count_seeds_needed(claim, pairs, confidence)
    if needed_seeds is None:
        return advise_on_questions(claim, pairs, confidence)
    if predict_word(claim, pairs, needed_seeds, confidence, POWER) == TIE:
        return f"about {needed_seeds} seeds would show a tie"
    return f"about {needed_seeds} seeds would resolve it"


def count_seeds_needed(claim: Claim, pairs: Sequence[RowComparison], confidence: float) -> int | None:
    """The fewest seeds, more than the least that a pair has, that would decide a claim with a chance of
    `POWER`; None if `MAX_SEEDS` would not."""
    too_few = min(len(pair.seeds) for pair in pairs)
    enough = MAX_SEEDS
    if predict_word(claim, pairs, enough, confidence, POWER) == UNRESOLVED:
        return None
    # intervals shrink with every seed, so whatever decides goes on deciding
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if predict_word(claim, pairs, middle, confidence, POWER) == UNRESOLVED:
            too_few = middle
        else:
            enough = middle
    return enough


def advise_on_questions(claim: Claim, pairs: Sequence[RowComparison], confidence: float) -> str:
    """What would resolve a claim that no number of seeds up to `MAX_SEEDS` does."""
    if predict_word(claim, pairs, math.inf, confidence, POWER) != UNRESOLVED:
        return f"more than {MAX_SEEDS} seeds would be needed"
    lower_tail, upper_tail = compute_tails(confidence, len(pairs))
    gaps = [pair.estimate + claim.points for pair in pairs]
    if min(gaps) > 0:  # every pair has to hold
        shares = []
        for pair, gap in zip(pairs, gaps):
            shares.append(predict_reach(pair, math.inf, lower_tail, POWER) / gap)
        most_share = max(shares)
    else:  # one pair is enough to refute it
        most_share = math.inf
        for pair, gap in zip(pairs, gaps):
            if gap < 0:
                most_share = min(most_share, predict_reach(pair, math.inf, upper_tail, POWER) / -gap)
    # the interval shrinks with the root of the number of questions
    times = math.ceil(most_share**2) if most_share < math.inf else math.inf
    if times > MAX_SEEDS:
        return "no number of seeds or questions in reach would resolve it"
    return f"more seeds cannot resolve it, the questions decide; about {times} times as many would"
