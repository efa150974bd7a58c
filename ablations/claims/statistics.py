"""Intervals: of a row's mean over seeds, and of the difference of two rows over test questions and seeds.

Two rows are compared on the same questions and the same seeds: what has an interval is the difference of
their outcomes, so what is hard for both, or lucky for both, drops out.

- Questions about one picture share its luck, so pictures are counted, not questions.
- Seeds are few: an interval that draws 3 seeds with replacement holds the truth in as few as 77 % of runs,
  not 95 % (tests/ablations/claims/test_statistics.py). So the seeds' part has Student's t of their degrees
  of freedom, and what pictures add to it (variance components of a two-way layout) that of the pictures'.
- Student's t is for all of the seeds' mean square, the noise of single answers in it too. To take that noise
  out first, and to count Satterthwaite's degrees of freedom, is narrower where seeds agree by luck: intervals
  of two and three seeds then hold the truth in as few as 90 %.
- The seeds' spread is moderated by what a table's other pairs tell of theirs (`moderation`).

All of it is in closed form: a bootstrap over pictures gives the same intervals, but for its own chance, which
decided verdicts whose interval ends at zero.

Letters of the shapes: S seeds, Q questions, P pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit  # quantiles of normal and t; scipy.stats is slow to import

CONFIDENCE_LEVEL = 0.95
UPPER_LEVEL = (1 + CONFIDENCE_LEVEL) / 2  # of an interval with equal tails
MOST_POINTS = 100.0  # by which two accuracies can differ

OutcomesBySeed = Mapping[int, NDArray]  # seed -> (Q,) right or wrong, or a sum of gains


class MeanSquares(NamedTuple):
    """Of a two-way layout (S, P): between seeds, between pictures, and of the residuals."""

    seeds: float
    pictures: float
    residual: float


class VarianceComponents(NamedTuple):
    """How much seeds and pictures vary beyond the residuals, and the residuals."""

    seeds: float
    pictures: float
    residual: float


class SeedPrior(NamedTuple):
    """What is known of a pair's seeds before they are looked at.

    ratio     mean square between seeds over the residual's
    degrees   degrees of freedom that this knowledge is worth
    """

    ratio: float
    degrees: float


@dataclass(frozen=True)
class RowComparison:
    """Accuracy of `row` minus that of `other` in percentage points, and its interval.

    seeds             those that both rows have
    pictures          how many the questions are about
    picture_variance  in points squared, of the estimate over other pictures at the same seeds
    limit             in points, of what the difference can be
    squares           mean squares in points squared; None with a single seed or picture, which show no spread
    prior             what other pairs tell of the seeds' spread; None: nothing
    own_low           and own_high: the interval without the prior, from this pair's seeds alone
    """

    row: str
    other: str
    seeds: tuple[int, ...]
    pictures: int
    estimate: float
    picture_variance: float
    squares: MeanSquares | None
    prior: SeedPrior | None = None
    limit: float = MOST_POINTS
    low: float = math.nan
    high: float = math.nan
    own_low: float = math.nan
    own_high: float = math.nan

    @property
    def seed_freedom(self) -> float:
        """Degrees of freedom of the mean square between seeds, the prior's among them."""
        own_freedom = len(self.seeds) - 1
        return own_freedom + self.prior.degrees if self.prior else own_freedom

    @property
    def moderated_squares(self) -> MeanSquares:
        """Mean squares; that between seeds is the mean of its own and the prior's by degrees of freedom."""
        assert self.squares is not None  # asked for only where there are several seeds and pictures
        if self.prior is None:
            return self.squares
        own_freedom = len(self.seeds) - 1
        expected = self.prior.ratio * self.squares.residual
        seed_sum = own_freedom * self.squares.seeds + self.prior.degrees * expected
        return self.squares._replace(seeds=seed_sum / self.seed_freedom)

    @property
    def variance_components(self) -> VarianceComponents:
        """The method of moments for a two-way layout without repetition: no component is below 0."""
        seeds, pictures, residual = self.moderated_squares
        seed_excess = max(0.0, seeds - residual)
        picture_excess = max(0.0, pictures - residual)
        return VarianceComponents(
            seeds=seed_excess / self.pictures,
            pictures=picture_excess / len(self.seeds),
            residual=residual,
        )

    def compute_distance(self, tail: float) -> float:
        """How far an end of the interval that leaves out `tail` is from the estimate."""
        picture_quantile = stdtrit(self.pictures - 1, 1 - tail)
        if self.squares is None:  # a single seed
            return float(picture_quantile * math.sqrt(self.picture_variance))
        seeds, pictures, residual = self.moderated_squares
        seed_quantile = stdtrit(self.seed_freedom, 1 - tail)
        # what pictures add beyond the noise of single answers; below 0 where they add nothing
        excess = pictures - residual
        widened = seed_quantile**2 * seeds + picture_quantile**2 * excess
        return math.sqrt(max(widened, picture_quantile**2 * pictures) / (len(self.seeds) * self.pictures))


def identify_outcomes(outcomes: OutcomesBySeed) -> tuple[tuple[int, bytes], ...]:
    """What rows of one cell have in common: their answers, to the bit."""
    return tuple((seed, outcomes[seed].tobytes()) for seed in sorted(outcomes))


def compute_seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half its t-interval over seeds; nan with a single one."""
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return mean, math.nan
    quantile = stdtrit(count - 1, UPPER_LEVEL)
    spread = np.std(values, ddof=1)
    return mean, float(quantile * spread / math.sqrt(count))


def average_by_picture(difference: NDArray, picture: NDArray[np.intp]) -> NDArray[np.float64]:
    """(S, Q) differences and each question's picture number (Q,) -> (S, P), with the same means over P. A
    picture with more questions weighs more (linearised ratio of sums)."""
    pictures = int(picture.max()) + 1
    sums = []
    for seed_difference in difference.astype(np.float64):  # (Q,)
        sums.append(np.bincount(picture, seed_difference, pictures))
    questions = np.bincount(picture, minlength=pictures)  # (P,)
    mean = difference.mean()
    deviations = np.stack(sums) - mean * questions  # (S, P)
    return mean + deviations * pictures / len(picture)


def compute_mean_squares(values: NDArray[np.float64]) -> MeanSquares:
    """Of (S, P), S and P at least 2."""
    seeds, pictures = values.shape
    mean = values.mean()
    seed_means = values.mean(1)  # (S,)
    picture_means = values.mean(0)  # (P,)
    residuals = values - seed_means[:, None] - picture_means + mean
    seed_freedom = seeds - 1
    picture_freedom = pictures - 1
    # every seed's mean is over P values, every picture's over S
    seed_sum = pictures * ((seed_means - mean) ** 2).sum()
    picture_sum = seeds * ((picture_means - mean) ** 2).sum()
    residual_sum = (residuals**2).sum()
    return MeanSquares(
        seeds=float(seed_sum / seed_freedom),
        pictures=float(picture_sum / picture_freedom),
        residual=float(residual_sum / (seed_freedom * picture_freedom)),
    )


def compute_interval(pair: RowComparison, tails: tuple[float, float]) -> tuple[float, float]:
    """The interval that leaves out `tails` below and above."""
    if pair.pictures == 1:
        return pair.estimate, pair.estimate
    low = pair.estimate - pair.compute_distance(tails[0])
    high = pair.estimate + pair.compute_distance(tails[1])
    # Student's t with one or two degrees of freedom does not know how far accuracies can differ; we do
    return max(low, -pair.limit), min(high, pair.limit)


def compare_rows(
    row: str,
    other: str,
    outcomes: Mapping[str, OutcomesBySeed],
    counted: NDArray[np.bool_],
    picture: NDArray[np.intp],
) -> RowComparison:
    """A pair without its interval. `counted` (Q,) tells the questions that count."""
    row_outcomes = outcomes[row]
    other_outcomes = outcomes[other]
    seeds = tuple(sorted(row_outcomes.keys() & other_outcomes.keys()))
    differences = []
    for seed in seeds:
        row_points = 100.0 * row_outcomes[seed][counted]
        other_points = 100.0 * other_outcomes[seed][counted]
        differences.append(row_points - other_points)
    # numbered anew: pictures without a counted question are none
    picture_numbers = np.unique(picture[counted], return_inverse=True)[1]
    values = average_by_picture(np.stack(differences), picture_numbers)  # (S, P)
    seed_count, pictures = values.shape
    return RowComparison(
        row=row,
        other=other,
        seeds=seeds,
        pictures=pictures,
        estimate=float(values.mean()),
        picture_variance=float(values.mean(0).var(ddof=1)) / pictures if pictures > 1 else math.nan,
        squares=compute_mean_squares(values) if seed_count > 1 and pictures > 1 else None,
    )


def predict_distance(pair: RowComparison, seeds: float, tail: float) -> float:
    """About how far an end that leaves out `tail` would be from the estimate with so many seeds; infinitely
    many leave the questions' part."""
    components = pair.variance_components
    picture_quantile = stdtrit(pair.pictures - 1, 1 - tail)
    freedom = pair.seed_freedom + seeds - len(pair.seeds)
    # Student's t with infinitely many degrees of freedom is the normal distribution
    seed_quantile = stdtrit(freedom, 1 - tail) if freedom < math.inf else ndtri(1 - tail)
    answer_variance = components.residual / pair.pictures / seeds
    picture_variance = components.pictures / pair.pictures
    seed_variance = components.seeds / seeds + answer_variance
    widened = seed_quantile**2 * seed_variance + picture_quantile**2 * picture_variance
    return math.sqrt(max(widened, picture_quantile**2 * (picture_variance + answer_variance)))
