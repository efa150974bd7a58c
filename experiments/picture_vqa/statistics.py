"""What a blind guesser would score: the counts and majority rates of the manifest."""

from collections import Counter

from experiments.picture_vqa.questions import QUESTION_FAMILIES


def count_statistics(records: list[dict]) -> dict:
    """Scenes, questions, and per family how often its most frequent answer is right, overall and per kind."""
    answers: dict[str, dict[str, Counter]] = {family: {} for family in QUESTION_FAMILIES}
    for record in records:
        replies = [turn["value"] for turn in record["conversations"][1::2]]
        for family, kind, answer in zip(record["families"], record["kinds"], replies, strict=True):
            # A negative's sort is not visible in the question, so presence counts as one kind.
            answers[family].setdefault("presence" if family == "presence" else kind, Counter())[answer] += 1
    families = {family: _summarise_family(kinds) for family, kinds in answers.items()}
    return {
        "scenes": len(records),
        "questions": sum(f["questions"] for f in families.values()),
        "families": families,
    }


def _summarise_family(kinds: dict[str, Counter]) -> dict:
    together = sum(kinds.values(), Counter())
    total = max(1, together.total())
    answer, count = together.most_common(1)[0] if together else ("", 0)
    return {
        "questions": together.total(),
        "majority_answer": answer,
        "majority": round(count / total, 4),
        "majority_by_kind": round(sum(max(c.values()) for c in kinds.values()) / total, 4),
        "kinds": {kind: counter.total() for kind, counter in sorted(kinds.items())},
    }
