"""What is right by luck: always giving the most frequent answer. No torch: tables are printed without it."""

from collections import Counter
from collections.abc import Iterable
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
    accuracies: dict[str, float] = {}
    counts: dict[str, int] = {}
    hit_sum = 0
    for family, answers in sorted(collect_family_answers(samples).items()):
        hits = max(Counter(answers).values())
        hit_sum += hits
        accuracies[family] = hits / len(answers)
        counts[family] = len(answers)
    total = sum(counts.values())
    return {
        "overall": hit_sum / max(total, 1),
        "families": accuracies,
        "counts": counts,
        "n": total,
    }
