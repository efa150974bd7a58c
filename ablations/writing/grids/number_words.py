"""Numbers and intervals as the words of a report."""

import math

from ablations.claims.statistics import RowComparison
from ablations.claims.verdicts import Verdict

ONE_SEED_MARK = "*"
# a colon: with a space the mark would begin a list
ONE_SEED_NOTE = (
    f"{ONE_SEED_MARK}: one seed in common, an interval over questions alone, which does not know what "
    "another seed would give."
)


def format_amount(number: float) -> str:
    """1234567 -> 1.23 M."""
    number = float(f"{number:.3g}")  # first: 999600 is 1 M
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.0f}"


def format_signed(number: float) -> str:
    """A difference with its sign; what rounds to nothing is +0.0."""
    words = f"{number:+.1f}"
    return words.replace("-0.0", "+0.0")


def format_interval(judged: Verdict | RowComparison) -> str:
    """The interval of a verdict or pair."""
    if math.isnan(judged.low):
        return ""
    return format_range(judged.low, judged.high)


def format_range(low: float, high: float) -> str:
    """Two ends of an interval, -0.0 where one is below 0 by less than is written: its side is a verdict's."""
    return f"{low:+.1f} to {high:+.1f}"
