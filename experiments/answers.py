"""When an answer is right, and what is right by luck. No torch: a table is printed without it."""
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from experiments.data.llava import Sample

ALL = "all"  # the family of questions that name none
ARTICLES = {"a", "an", "the"}
NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
# Signs around words carry no meaning; inside a word or number they do: 3.5, 10:30, t-shirt, o'clock, 1/2.
PUNCTUATION = re.compile(r"(?<!\w)[^\w\s%$€£+-]+|[^\w\s%$€£+]+(?!\w)")


def normalise(answer: str) -> str:
    """Lower case, without articles, surrounding punctuation and extra spaces: "The fox." -> "fox"."""
    text = PUNCTUATION.sub(" ", NUMBER_COMMA.sub("", answer.lower()))
    kept = [word for word in text.split() if word not in ARTICLES]
    return " ".join(kept or text.split())  # "A" may be the answer itself


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
    return {"overall": sum(hits.values()) / total if total else 0.0,
            "families": {f: hits[f] / counts[f] for f in counts}, "counts": counts, "n": total}
