"""Exact match: an answer is right if it is the truth, but for what `normalise_answer` calls the same."""

from collections.abc import Sequence

from experiments.metrics.answers import normalise_answer
from experiments.metrics.mean import MeanScore, list_accepted_answers


class ExactMatch(MeanScore):
    """Share of answers that equal the truth, or one of several accepted ones, after `normalise_answer`. What
    the sweep scores with."""

    def score(self, said: str, truth: str | Sequence[str]) -> float:
        prediction = normalise_answer(said)
        return float(any(prediction == normalise_answer(answer) for answer in list_accepted_answers(truth)))
