"""Scores that forgive small errors: of reading (ANLS), of numbers read off charts (relaxed accuracy)."""

import math
from collections.abc import Sequence

from experiments.metrics.mean import MeanScore, list_accepted_answers


class ANLS(MeanScore):
    """Average normalised Levenshtein similarity (DocVQA, ST-VQA: Biten et al. 2019, arXiv 1905.13648).

    1 - edits / length of the longer text, for the best of the accepted answers; 0 below `threshold`. Case and
    runs of spaces do not count. As in the benchmark's scorer a similarity of exactly `threshold` stands;
    its lengths, though, have all spaces of a run.
    """

    def __init__(self, threshold: float = 0.5):
        super().__init__()
        self.threshold = threshold

    def score(self, said: str, truth: str | Sequence[str]) -> float:
        prediction = simplify_text(said)
        best = 0.0
        for answer in list_accepted_answers(truth):
            best = max(best, measure_similarity(prediction, simplify_text(answer)))
        if best < self.threshold:
            return 0.0
        return best


class RelaxedAccuracy(MeanScore):
    """ChartQA's accuracy (Masry et al. 2022, arXiv 2203.10244): a number may be off by `tolerance` of the
    truth, anything else must be equal but for case and spaces. "5%" is the number 0.05; truths: answers.
    Unlike in Pix2Struct's scorer, which most use, "0.0" is right where the truth is "0"."""

    def __init__(self, tolerance: float = 0.05):
        super().__init__()
        self.tolerance = tolerance

    def score(self, said: str, truth: str | Sequence[str]) -> float:
        prediction = simplify_text(said)
        answers = [simplify_text(answer) for answer in list_accepted_answers(truth)]
        return float(any(self.is_close(prediction, answer) for answer in answers))

    def is_close(self, said: str, truth: str) -> bool:
        """Whether one answer is near enough to one truth, both as `simplify_text` makes them."""
        said_number = read_number(said)
        true_number = read_number(truth)
        if said_number is None or true_number is None:
            return said == truth
        return abs(said_number - true_number) <= self.tolerance * abs(true_number)


def simplify_text(text: str) -> str:
    """Lower case, one space between words."""
    return " ".join(text.lower().split())


def measure_similarity(one: str, other: str) -> float:
    """1 - Levenshtein distance / length of the longer; 1 for two empty texts."""
    longest = max(len(one), len(other))
    if not longest:
        return 1.0
    return 1 - count_edits(one, other) / longest


def count_edits(one: str, other: str) -> int:
    """The Levenshtein distance. (torchmetrics' looks at a band of 25 characters on each side alone, and says
    too much for texts that are shifted by more.)"""
    edits_so_far = list(range(len(other) + 1))  # from no character of `one` to each beginning of `other`
    for number, letter in enumerate(one, start=1):
        before = edits_so_far
        edits_so_far = [number]
        for column, other_letter in enumerate(other, start=1):
            replaced = before[column - 1] + (letter != other_letter)
            edits_so_far.append(min(replaced, before[column] + 1, edits_so_far[-1] + 1))
    return edits_so_far[-1]


def read_number(text: str) -> float | None:
    """The number that a text is, if it is one."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        return None
    if not math.isfinite(number):
        return None  # "nan" and "infinity" are words here
    if text.endswith("%"):
        return number / 100
    return number
