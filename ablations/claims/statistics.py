"""Intervals: of a row's mean over seeds, and of the difference of two rows by a paired bootstrap over test
questions x seeds.

Two rows are compared on the same questions and the same seeds: what is resampled is the difference of their
outcomes, so what is hard for both, or lucky for both, drops out.

- Questions are drawn with replacement, picture by picture: questions about one picture share its luck.
- Seeds are too few for that: an interval that draws 3 seeds with replacement holds the truth in as few as
  77 % of runs, not 95 % (tests/ablations/test_statistics.py). Each resample moves by a normal step instead,
  as large as the seeds' spread beyond what the noise of single answers explains (variance components of a
  two-way layout; that noise is in the questions' draws already).
- The percentiles are then stretched from the normal distribution to Student's t with Satterthwaite's degrees
  of freedom, few where the seeds are what matters, many where the questions are.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit  # quantiles of normal and t; scipy.stats is slow to import

RESAMPLES, CONFIDENCE_LEVEL, RESAMPLING_SEED = 5_000, 0.95, 0
DRAWS_AT_ONCE = 4_000_000  # draws held at once

OutcomesBySeed = Mapping[int, NDArray[np.bool_]]  # seed -> (Q,) right or wrong


class MeanSquares(NamedTuple):
    """Of a two-way layout (S, P): between seeds, between pictures, and of what is left."""

    seeds: float
    pictures: float
    rest: float


@dataclass(frozen=True)
class RowComparison:
    """Accuracy of `row` minus that of `other` in percentage points, and its interval. `squares`, in points
    squared, are None with a single seed or picture."""

    row: str
    other: str
    seeds: tuple[int, ...]
    pictures: int
    estimate: float
    squares: MeanSquares | None
    low: float = math.nan
    high: float = math.nan

    @property
    def variance_components(self) -> tuple[float, float, float]:
        """Variance components: of seeds, of pictures, of what is left."""
        seeds, pictures, rest = self.squares
        return max(0.0, seeds - rest) / self.pictures, max(0.0, pictures - rest) / len(self.seeds), rest

    @property
    def degrees_of_freedom(self) -> float:
        """Satterthwaite's degrees of freedom of the variance of the estimate, at least 1."""
        seeds, pictures, rest = self.squares
        total = max(seeds + pictures - rest, pictures)
        of_seeds, of_pictures = len(self.seeds) - 1, self.pictures - 1
        unsure = seeds**2 / of_seeds + pictures**2 / of_pictures + rest**2 / (of_seeds * of_pictures)
        return max(1.0, total**2 / unsure) if unsure else math.inf


def compute_seed_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half its t-interval over seeds; nan with a single one."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, math.nan
    return mean, float(stdtrit(n - 1, (1 + CONFIDENCE_LEVEL) / 2) * np.std(values, ddof=1) / math.sqrt(n))


def average_by_picture(difference: NDArray, picture: NDArray[np.intp]) -> NDArray[np.float64]:
    """(S, Q) differences and each question's picture number (Q,) -> (S, P), with the same means over P. A
    picture with more questions weighs more (linearised ratio of sums)."""
    pictures = int(picture.max()) + 1
    sums = np.stack([np.bincount(picture, row, pictures) for row in difference.astype(np.float64)])
    questions = np.bincount(picture, minlength=pictures)
    mean = difference.mean()
    return mean + (sums - mean * questions) * pictures / len(picture)


def compute_mean_squares(values: NDArray[np.float64]) -> MeanSquares:
    """Of (S, P), S and P at least 2."""
    seeds, pictures = values.shape
    mean, by_seed, by_column = values.mean(), values.mean(1), values.mean(0)
    rest = values - by_seed[:, None] - by_column + mean
    return MeanSquares(
        float(pictures * ((by_seed - mean) ** 2).sum() / (seeds - 1)),
        float(seeds * ((by_column - mean) ** 2).sum() / (pictures - 1)),
        float((rest**2).sum() / ((seeds - 1) * (pictures - 1))),
    )


def resample_means(
    columns: NDArray[np.float64], resamples: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of columns (P, K) over pictures drawn with replacement, all columns on the same draws: (R, K)."""
    pictures = len(columns)
    size = max(1, min(resamples, DRAWS_AT_ONCE // pictures))
    found = []
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = rng.integers(0, pictures, (rows, pictures)) + pictures * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * pictures).reshape(rows, pictures)
        found.append(counts.astype(np.float64) @ columns / pictures)
    return np.concatenate(found)


def draw_seed_steps(variance: float, resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Normal steps (R,) of that variance, evenly over its quantiles, in random order."""
    return rng.permutation(ndtri((np.arange(resamples) + 0.5) / resamples)) * math.sqrt(variance)


def compute_interval(
    pair: RowComparison, means: NDArray[np.float64], tails: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float]:
    """What leaves out `tails` below and above, from means over resampled questions (R,). Student's t with one
    or two degrees of freedom does not know that accuracies differ by at most 100 points; we do."""
    levels = [tails[0], 1 - tails[1]]
    if pair.squares is None:
        low, high = np.quantile(means, levels)
        return float(low), float(high)
    means = means + draw_seed_steps(pair.variance_components[0] / len(pair.seeds), len(means), rng)
    wider = stdtrit(pair.degrees_of_freedom, levels) / ndtri(levels)
    low, high = np.clip(pair.estimate + (np.quantile(means, levels) - pair.estimate) * wider, -100, 100)
    return float(low), float(high)


def compare_rows(
    row: str,
    other: str,
    outcomes: Mapping[str, OutcomesBySeed],
    keep: NDArray[np.bool_],
    picture: NDArray[np.intp],
) -> tuple[RowComparison, NDArray[np.float64]]:
    """A pair without its interval, and what is resampled for it: differences (P,) in points, mean over the
    seeds that both rows have. `keep` (Q,) tells the questions that count."""
    seeds = tuple(sorted(outcomes[row].keys() & outcomes[other].keys()))
    difference = np.stack([100.0 * outcomes[row][s][keep] - 100.0 * outcomes[other][s][keep] for s in seeds])
    numbers = np.unique(picture[keep], return_inverse=True)[1]
    values = average_by_picture(difference, numbers)
    squares = compute_mean_squares(values) if min(values.shape) > 1 else None
    return RowComparison(row, other, seeds, values.shape[1], float(values.mean()), squares), values.mean(0)


def predict_half_width(pair: RowComparison, seeds: float) -> float:
    """About half the interval that so many seeds would give."""
    upper, (of_seeds, of_pictures, rest) = (1 + CONFIDENCE_LEVEL) / 2, pair.variance_components
    t = stdtrit(seeds - 1, upper) if seeds < math.inf else ndtri(upper)
    questions = (of_pictures + rest / seeds) / pair.pictures
    return math.sqrt(t**2 * of_seeds / seeds + ndtri(upper) ** 2 * questions)
