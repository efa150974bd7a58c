"""What is right by luck: always giving the most frequent answer. No torch: tables are printed without it."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from experiments.data.llava import UNNAMED_FAMILY, Sample
from experiments.metrics.answers import normalise_answer


def collect_family_answers(samples: Iterable[Sample]) -> dict[str, list[str]]:
    """Normalised answers of all questions by family."""
    answers: dict[str, list[str]] = {}
    for sample in samples:
        for index, turn in enumerate(sample.turns):
            family = sample.families[index] if sample.families else UNNAMED_FAMILY
            answers.setdefault(family, []).append(normalise_answer(turn.answer or ""))
    return answers


def score_majority_answers(samples: Iterable[Sample]) -> dict[str, Any]:
    """Accuracy of always giving each family's most frequent answer, in the form of metrics.json."""
    hits: dict[str, int] = {}
    counts: dict[str, int] = {}
    for family, answers in sorted(collect_family_answers(samples).items()):
        hits[family] = max(Counter(answers).values())
        counts[family] = len(answers)
    total = sum(counts.values())
    return {
        "overall": sum(hits.values()) / total if total else 0.0,
        "families": {family: hits[family] / counts[family] for family in counts},
        "counts": counts,
        "n": total,
    }
