"""Gains, and sums of them that claims compare as if they were rows.

A gain is the accuracy of a row minus that of another: what a query module adds to a compressor. Two gains
compare as a difference of differences; a series of them has a trend, the rise of the least-squares line from
its first to its last. Both are a sum of gains minus a sum of gains, with weights above 0, and are written out
as such, so that a reader can check them.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from compressors.errors import UsageError
from compressors.registry import suggest

GAIN_KEYS = {"row", "over"}
FEWEST_STEPS = 3  # gains of a trend; two are a difference of differences


class Gain(NamedTuple):
    """What `row` has over another."""

    row: str
    over: str

    @property
    def words(self) -> str:
        """As a claim's statement writes it."""
        return f"({self.row} - {self.over})"


class GainSum(NamedTuple):
    """Gains times their weights, which are above 0. Its name is the formula."""

    name: str
    gains: tuple[Gain, ...]
    weights: tuple[float, ...]


def sum_gains(weighted_gains: Sequence[tuple[float, Gain]]) -> GainSum:
    """The sum, named by its formula."""
    formula = []
    gains = []
    weights = []
    for weight, gain in weighted_gains:
        factor = "" if weight == 1 else f"{weight:.2g} "
        formula.append(f"{factor}{gain.words}")
        gains.append(gain)
        weights.append(weight)
    return GainSum(" + ".join(formula), tuple(gains), tuple(weights))


def make_trend(gains: Sequence[Gain]) -> tuple[GainSum, GainSum]:
    """Gains in order -> what counts for a rise, and what against: their difference is how much the
    least-squares line rises from the first to the last."""
    last_step = len(gains) - 1
    steps = np.arange(len(gains)) - last_step / 2
    weights = last_step * steps / (steps**2).sum()  # the slope a step, times the steps
    late_gains = []
    early_gains = []
    for gain, weight in zip(gains, weights.tolist()):
        # the middle one of an odd number tells nothing of the slope
        if weight > 0:
            late_gains.append((weight, gain))
        elif weight < 0:
            early_gains.append((-weight, gain))
    late_gains.reverse()  # the most telling first, on both sides
    return sum_gains(late_gains), sum_gains(early_gains)


def parse_gain(entry: object, labels: Collection[str], place: str) -> Gain:
    """{row: sap+embq, over: sap}. UsageError for another shape, or a row that the table does not have."""
    if not isinstance(entry, dict) or set(entry) != GAIN_KEYS:
        raise UsageError(f"{place}: {entry!r}: expected {{row: ..., over: ...}}")
    gain = Gain(check_label(entry["row"], labels), check_label(entry["over"], labels))
    if gain.row == gain.over:
        raise UsageError(f"{place}: '{gain.row}' is compared with itself")
    return gain


def check_label(label: object, labels: Collection[str]) -> str:
    """The label of a row that the table has; YAML reads one such as 9 as a number."""
    if str(label) not in labels:
        raise UsageError(f"no row '{label}'{suggest(str(label), labels)}")
    return str(label)


def list_common_seeds(labels: Sequence[str], outcomes: Mapping[str, Mapping[int, NDArray]]) -> list[int]:
    """The seeds that all these rows have, in order."""
    common_seeds: set[int] | None = None
    for label in labels:
        row_seeds = set(outcomes.get(label, ()))
        common_seeds = row_seeds if common_seeds is None else common_seeds & row_seeds
    return sorted(common_seeds or ())


def combine_outcomes(
    gain_sum: GainSum, outcomes: Mapping[str, Mapping[int, NDArray]]
) -> dict[int, NDArray[np.float64]]:
    """Seed -> (Q,) the sum over gains of weight x (right of the row - right of the other), at the seeds that
    all of its rows have."""
    labels = [label for gain in gain_sum.gains for label in gain]
    combined: dict[int, NDArray[np.float64]] = {}
    for seed in list_common_seeds(labels, outcomes):
        weighted_gains = []
        for gain, weight in zip(gain_sum.gains, gain_sum.weights):
            difference = outcomes[gain.row][seed].astype(np.float64) - outcomes[gain.over][seed]
            weighted_gains.append(weight * difference)
        combined[seed] = np.sum(weighted_gains, axis=0)
    return combined
