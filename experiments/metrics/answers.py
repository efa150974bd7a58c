"""When an answer is right, and what is right by luck. No torch: a table is printed without it."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from experiments.data.llava import ALL_FAMILY, Sample

ALL = ALL_FAMILY
ARTICLES = {"a", "an", "the"}
NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
KEPT_BEFORE, KEPT_AFTER = "%-", "%#"  # -3, 50%, C#


def normalise(answer: str) -> str:
    """Lower case, without articles, punctuation around words and extra spaces: "The fox." -> "fox". Signs
    with a meaning stay: those inside a word or number (3.5, 10:30, o'clock), and all that Unicode does not
    call punctuation (€, <, 5°, ✓, vowel signs)."""
    text = NUMBER_COMMA.sub("", unicodedata.normalize("NFC", answer).lower())
    words = [word for word in map(bare, text.split()) if word] or text.split()  # "?" may be the answer itself
    return " ".join([word for word in words if word not in ARTICLES] or words)  # so may "A"


def bare(word: str) -> str:
    """A word without punctuation around it; the point of .5 belongs to it."""
    start, end = 0, len(word)
    while end and is_punctuation(word[end - 1], KEPT_AFTER):
        end -= 1
    while start < end and is_punctuation(word[start], KEPT_BEFORE):
        if word[start] == "." and word[start + 1].isdigit():
            break
        start += 1
    return word[start:end]


def is_punctuation(sign: str, kept: str) -> bool:
    return sign not in kept and (sign == "`" or unicodedata.category(sign).startswith("P"))


def family_answers(samples: Iterable[Sample]) -> dict[str, list[str]]:
    """Normalised answers of all questions by family."""
    found = defaultdict(list)
    for sample in samples:
        for i, turn in enumerate(sample.turns):
            found[sample.families[i] if sample.families else ALL].append(normalise(turn.answer))
    return dict(found)


def majority_rates(samples: Iterable[Sample]) -> dict[str, Any]:
    """Accuracy of always giving each family's most frequent answer, in the form of metrics.json."""
    hits, counts = {}, {}
    for family, answers in sorted(family_answers(samples).items()):
        hits[family], counts[family] = max(Counter(answers).values()), len(answers)
    total = sum(counts.values())
    return {
        "overall": sum(hits.values()) / total if total else 0.0,
        "families": {f: hits[f] / counts[f] for f in counts},
        "counts": counts,
        "n": total,
    }
