"""Exact match: an answer is right if it is the truth, but for what `normalise_answer` calls the same."""

from experiments.metrics.answers import normalise_answer
from experiments.metrics.mean import MeanScore


class ExactMatch(MeanScore):
    """Share of answers that equal the truth after `normalise_answer`. What the sweep scores with."""

    def score(self, said: str, truth: str) -> float:
        return float(normalise_answer(said) == normalise_answer(truth))
