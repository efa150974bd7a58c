"""What the other pairs of a table tell of a pair's seeds: moderated variances.

Three seeds estimate the variance of a difference from two degrees of freedom, and Student's t then asks for
4.3 standard errors. The pairs of a table were run alike, so how much seeds matter for the others is evidence
for each of them. Empirical Bayes (Smyth 2004, doi 10.2202/1544-6115.1027) makes it a prior: the mean square
between seeds, over the residual's, follows F's distribution, whose scale and degrees of freedom are estimated
from the logarithms' mean and variance. Three things differ from there, each for coverage with few rows
(tests/ablations/claims/test_moderation.py simulates it):

- A pair's prior is of the other pairs alone; with its own among few, those that look calm by luck would be
  taken at their word twice.
- Pairs of a kind stand together: rows that share their training stages share those stages' luck, which drops
  out of their difference. So they vary several times less than rows that share nothing.
- Pairs share rows. A prior is worth no more degrees of freedom than its rows have.

A pair whose seeds differ more than its prior explains relies on it less: some rows do train unsteadily. With
three seeds such a pair is seldom far out, so this begins where a pair is less steady than half of the others
would be, and the prior's degrees of freedom shrink with the cube of how likely that is: the steepest of the
powers 1, 2 and 3 is needed for pairs with two to five times the others' spread to be covered in 90 %. A test
at 5 %, which takes all of a prior or nothing, covers 78 %, and verdicts hang on which side a pair falls.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, fdtrc, polygamma

from ablations.claims.gains import GainSum
from ablations.claims.statistics import (
    MOST_POINTS,
    OutcomesBySeed,
    RowComparison,
    SeedPrior,
    compare_rows,
    identify_outcomes,
)

PAIR_SIZE = 2  # rows; sums of gains have more, and inform no other pair
FEWEST_OTHERS = 2  # pairs, whose variance can be told from chance
STEADY_SHARE = 0.5  # of pairs as steady as the others, which rely on their prior wholly
DOUBT_POWER = 3  # how fast the others rely on it less
MOST_DEGREES = 1e6  # stands for infinitely many where a function needs a number


class ReferencePair(NamedTuple):
    """A pair of a table that informs the others.

    rows     its rows, each by the first label that has these outcomes; all rows of two sums of gains
    shared   how many training stages they share; of sums of gains, the fewest that a row and its other share
    """

    rows: frozenset[str]
    shared: int
    comparison: RowComparison

    @property
    def seed_ratio(self) -> float:
        """Mean square between seeds over the residual's: 1 where seeds add nothing to single answers."""
        assert self.comparison.squares is not None  # `has_spread` tells
        return self.comparison.squares.seeds / self.comparison.squares.residual

    @property
    def freedom(self) -> int:
        """Degrees of freedom of the mean square between seeds."""
        return len(self.comparison.seeds) - 1

    @property
    def has_spread(self) -> bool:
        """Whether it can differ from seed to seed: rows that are one cell do not, nor does a single seed."""
        return self.comparison.squares is not None and self.comparison.squares.residual > 0

    @property
    def is_informative(self) -> bool:
        """Whether its seeds tell of others': means that are equal by luck have no logarithm of a spread."""
        return self.has_spread and self.seed_ratio > 0


def find_first_labels(outcomes: Mapping[str, OutcomesBySeed]) -> dict[str, str]:
    """Label -> the first label with the same outcomes: several rows of a table can be one cell."""
    first_labels: dict[str, str] = {}
    labels_by_outcomes: dict[tuple, str] = {}
    for label, row_outcomes in outcomes.items():
        first_labels[label] = labels_by_outcomes.setdefault(identify_outcomes(row_outcomes), label)
    return first_labels


def count_shared_stages(first: Sequence[str], second: Sequence[str]) -> int:
    """How many training stages two rows share, each given by the keys of its own, in order."""
    shared = 0
    for first_key, second_key in zip(first, second):
        if first_key != second_key:
            break
        shared += 1
    return shared


def find_prior(pair: ReferencePair, references: Sequence[ReferencePair]) -> SeedPrior | None:
    """What the other pairs of its kind tell of a pair; None where they are too few."""
    if not pair.has_spread:
        return None
    other_pairs: dict[frozenset[str], ReferencePair] = {}
    for reference in references:
        # a gain is no evidence for a sum that it is part of
        is_other = not reference.rows <= pair.rows
        is_alike = reference.shared == pair.shared and len(reference.rows) == PAIR_SIZE
        if is_other and is_alike and reference.is_informative:
            other_pairs[reference.rows] = reference
    if len(other_pairs) < FEWEST_OTHERS:
        return None
    ratios = []
    freedoms = []
    for other_pair in other_pairs.values():
        ratios.append(other_pair.seed_ratio)
        freedoms.append(other_pair.freedom)
    prior = fit_prior(np.array(ratios), np.array(freedoms))

    share_beyond = fdtrc(pair.freedom, min(prior.degrees, MOST_DEGREES), pair.seed_ratio / prior.ratio)
    reliance = min(1.0, float(share_beyond) / STEADY_SHARE) ** DOUBT_POWER
    limit = count_independent_others(pair.rows, list(other_pairs)) * float(np.mean(freedoms))
    if limit <= 0:
        return None
    return SeedPrior(prior.ratio, min(prior.degrees, limit) * reliance)


def count_independent_others(rows: frozenset[str], others: Sequence[frozenset[str]]) -> float:
    """How many pairs that share nothing with a pair of rows would tell as much as the others."""
    count = 0.0
    for other_rows in others:
        # the row that they share is half of both differences
        count += 0.5 if rows & other_rows else 1.0
    # R rows have R - 1 independent differences, one of which is the pair's own (more are those of a sum)
    return min(count, len(rows.union(*others)) - len(rows))


def fit_prior(ratios: NDArray[np.float64], freedoms: NDArray[np.intp]) -> SeedPrior:
    """Scale and degrees of freedom of the F distribution that ratios (K,) with so many degrees of freedom
    (K,) are drawn from, by the moments of their logarithms. K at least 2, ratios above 0."""
    half = freedoms / 2
    # a log-chi-square has this mean, whatever its scale
    logs = np.log(ratios) - digamma(half) + np.log(half)
    mean = float(logs.mean())
    # how much more they vary than chance alone would make them
    excess = float(logs.var(ddof=1) - polygamma(1, half).mean())
    if excess <= 0:
        return SeedPrior(math.exp(mean), math.inf)
    degrees = 2 * invert_trigamma(excess)
    log_ratio = mean + digamma(degrees / 2) - math.log(degrees / 2)
    return SeedPrior(math.exp(log_ratio), degrees)


def invert_trigamma(value: float) -> float:
    """x with trigamma(x) = value > 0, by Newton's steps on 1 / trigamma, which is nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, x))
        x += step
        if -step < 1e-8 * x:
            break
    return x


class PairComparer:
    """Compares pairs of a table's rows, each once on the same questions, with what the others tell of its
    seeds.

    label_pairs     all pairs (row, other) that are compared
    evidence        those of them that tell of the others' seeds; all where none are given
    training_keys   by label, the keys of a row's training stages, which rows may share
    gain_sums       what the pairs name that is no row
    """

    def __init__(
        self,
        label_pairs: Iterable[tuple[str, str]],
        outcomes: Mapping[str, OutcomesBySeed],
        picture: NDArray,
        training_keys: Mapping[str, Sequence[str]],
        gain_sums: Iterable[GainSum] = (),
        evidence: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.label_pairs = list(dict.fromkeys(label_pairs))
        self.evidence = set(evidence) or set(self.label_pairs)
        self.outcomes = outcomes
        self.picture = picture
        self.training_keys = training_keys
        self.first_labels = find_first_labels(outcomes)
        self.gain_sums = {gain_sum.name: gain_sum for gain_sum in gain_sums}
        # by the questions that count, then by the pair's labels
        self.references: dict[bytes, dict[tuple[str, str], ReferencePair]] = {}

    def compare(self, row: str, other: str, counted: NDArray[np.bool_]) -> RowComparison:
        """As `compare_rows`, with the prior. Rows that share a seed, and a pair of `label_pairs`."""
        questions = counted.tobytes()
        if questions not in self.references:
            self._compare_all(questions, counted)
        references = self.references[questions]
        pair = references[row, other]
        evidence = [reference for labels, reference in references.items() if labels in self.evidence]
        prior = find_prior(pair, evidence)
        return replace(pair.comparison, prior=prior)

    def _compare_all(self, questions: bytes, counted: NDArray[np.bool_]) -> None:
        """Every pair that has results."""
        self.references[questions] = {}
        for row, other in self.label_pairs:
            row_seeds = self.outcomes.get(row, {}).keys()
            if not row_seeds & self.outcomes.get(other, {}).keys():
                continue
            comparison = compare_rows(row, other, self.outcomes, counted, self.picture)
            # two sums of gains vary with their seeds as the gains do
            row_pairs: list[tuple[str, str]] = []
            weights = 0.0
            for name in (row, other):
                if name in self.gain_sums:
                    row_pairs += self.gain_sums[name].gains
                    weights += sum(self.gain_sums[name].weights)
            if row_pairs:
                comparison = replace(comparison, limit=weights * MOST_POINTS)
            reference = self._describe_reference(row_pairs or [(row, other)], comparison)
            self.references[questions][row, other] = reference

    def _describe_reference(
        self, row_pairs: Iterable[tuple[str, str]], comparison: RowComparison
    ) -> ReferencePair:
        """A comparison with the rows it rests on."""
        rows = set()
        shared_stages = []
        for row, other in row_pairs:
            rows |= {self.first_labels[row], self.first_labels[other]}
            row_keys = self.training_keys.get(row, ())
            shared_stages.append(count_shared_stages(row_keys, self.training_keys.get(other, ())))
        return ReferencePair(frozenset(rows), min(shared_stages), comparison)
