"""Scores that forgive small errors: of reading (ANLS), of numbers read off charts (relaxed accuracy)."""

import math
from collections.abc import Sequence

from torchmetrics.functional.text import edit_distance

from experiments.metrics.mean import MeanScore, several


class ANLS(MeanScore):
    """Average normalised Levenshtein similarity (DocVQA, ST-VQA: Biten et al. 2019, arXiv 1905.13648).

    1 - edits / length of the longer text, for the best of the accepted answers; 0 below `threshold`. Case and
    runs of spaces do not count. As in the benchmark's scorer a similarity of exactly `threshold` stands.
    """

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold

    def score(self, said: str, truth: str | Sequence[str]) -> float:
        best = max(similarity(plain(said), plain(answer)) for answer in several(truth))
        return best if best >= self.threshold else 0.0


class RelaxedAccuracy(MeanScore):
    """ChartQA's accuracy (Masry et al. 2022, arXiv 2203.10244): a number may be off by `tolerance` of the
    truth, anything else must be equal but for case. "5%" is the number 0.05; truths: answers."""

    def __init__(self, tolerance: float = 0.05):
        super().__init__()
        self.tolerance = tolerance

    def score(self, said: str, truth: str | Sequence[str]) -> float:
        return float(any(self.close(plain(said), plain(answer)) for answer in several(truth)))

    def close(self, said: str, truth: str) -> bool:
        """Whether one answer is near enough to one truth, both `plain`."""
        numbers = number(said), number(truth)
        if None in numbers:
            return said == truth
        return abs(numbers[0] - numbers[1]) <= self.tolerance * abs(numbers[1])


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def similarity(one: str, other: str) -> float:
    """1 - Levenshtein distance / length of the longer; 1 for two empty texts."""
    longest = max(len(one), len(other))
    return 1 - int(edit_distance(one, other, reduction="sum")) / longest if longest else 1.0


def number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        found = float(text.removesuffix("%"))
    except ValueError:
        return None
    if not math.isfinite(found):
        return None
    return found / 100 if text.endswith("%") else found
