"""What a blind guesser would score: the counts and majority rates of the manifest."""

from collections import Counter
from typing import Any

from experiments.picture_vqa.questions import QUESTION_FAMILIES

CountsByKind = dict[str, Counter[str]]  # kind -> how often each answer is right


def count_statistics(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Scenes, questions, and per family how often its most frequent answer is right, overall and per kind."""
    counts_by_family: dict[str, CountsByKind] = {family: {} for family in QUESTION_FAMILIES}
    for record in records:
        answers = [turn["value"] for turn in record["conversations"][1::2]]
        for family, kind, answer in zip(record["families"], record["kinds"], answers, strict=True):
            # A negative's sort is not visible in the question, so presence counts as one kind.
            visible_kind = "presence" if family == "presence" else kind
            counts = counts_by_family[family].setdefault(visible_kind, Counter())
            counts[answer] += 1
    families = {}
    questions = 0
    for family, counts_by_kind in counts_by_family.items():
        families[family] = _summarise_family(counts_by_kind)
        questions += families[family]["questions"]
    return {
        "scenes": len(records),
        "questions": questions,
        "families": families,
    }


def _summarise_family(counts_by_kind: CountsByKind) -> dict[str, Any]:
    """Questions of a family, and the share that guessing without a look at the picture gets right.

    `majority` is of someone who always gives the family's most frequent answer, `majority_by_kind` of someone
    who gives the most frequent answer of the question's kind.
    """
    totals: Counter[str] = Counter()
    right_by_kind = 0
    for counts in counts_by_kind.values():
        totals += counts
        right_by_kind += max(counts.values())
    questions = totals.total()
    majority_answer = ""
    majority_count = 0
    if questions:
        majority_answer, majority_count = totals.most_common(1)[0]
    divisor = max(1, questions)  # a small data set may lack a family
    kinds = {kind: counts.total() for kind, counts in sorted(counts_by_kind.items())}
    return {
        "questions": questions,
        "majority_answer": majority_answer,
        "majority": round(majority_count / divisor, 4),
        "majority_by_kind": round(right_by_kind / divisor, 4),
        "kinds": kinds,
    }
