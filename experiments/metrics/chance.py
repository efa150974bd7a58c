"""What is right by luck: always giving the most frequent answer. No torch: tables are printed without it."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from experiments.data.llava import Sample
from experiments.metrics.answers import normalise_answer


def collect_family_answers(samples: Iterable[Sample]) -> dict[str, list[str]]:
    """Normalised answers of all questions by family."""
    answers: dict[str, list[str]] = {}
    for sample in samples:
        for index, turn in enumerate(sample.turns):
            family = sample.name_family(index)
            assert turn.answer is not None  # only a chat has a turn to be answered; data sets' turns all are
            answers.setdefault(family, []).append(normalise_answer(turn.answer))
    return answers


def score_majority_answers(samples: Iterable[Sample]) -> dict[str, Any]:
    """Accuracy of always giving each family's most frequent answer, in the form of metrics.json."""
    scores: dict[str, list[float]] = {}
    for family, answers in collect_family_answers(samples).items():
        [(most_frequent, _)] = Counter(answers).most_common(1)
        scores[family] = [float(answer == most_frequent) for answer in answers]
    return average_scores(scores)


def average_scores(scores: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """overall, families, counts (questions of each), n (of all) of scores by family."""
    counts = {family: len(scores[family]) for family in sorted(scores)}
    total = sum(counts.values())
    return {
        "overall": math.fsum(chain.from_iterable(scores.values())) / max(total, 1),
        "families": {family: math.fsum(scores[family]) / count for family, count in counts.items()},
        "counts": counts,
        "n": total,
    }
