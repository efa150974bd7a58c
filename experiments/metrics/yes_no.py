"""Benchmarks of yes/no questions: POPE and MME."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.metrics.mean import list_accepted_answers

MME_GROUPS = {
    "perception": (
        "existence",
        "count",
        "position",
        "color",
        "posters",
        "celebrity",
        "scene",
        "landmark",
        "artwork",
        "OCR",
    ),
    "cognition": ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
}


class POPE(Metric):
    """Polling for objects that are not there (Li et al. 2023, arXiv 2305.10355): accuracy, precision, recall
    and F1 of "yes", and the share of questions answered with it.

    As in the paper's scorer an answer means no if its first sentence has the word "no" or "not", else yes;
    there "NO" and "Not" are none of these words, here they are.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        # [truth, prediction], 0 for no and 1 for yes
        self.add_state("counts", torch.zeros(2, 2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], answers: Sequence[str]) -> None:
        """One entry a question in each; answers are yes or no."""
        for prediction, truth in zip(predictions, answers, strict=True):
            row = int(is_yes_expected(truth))
            column = int(means_yes(prediction))
            self.counts[row, column] += 1

    def read_truth(self, answer: str | Sequence[str], question: str) -> str:  # noqa: ARG002  others read it
        """yes or no; UsageError for another answer of a data set."""
        return "yes" if is_yes_expected(list_accepted_answers(answer)[0]) else "no"

    def score(self, said: str, truth: str) -> float:
        """Whether one answer is right: what its accuracy is the mean of."""
        return float(means_yes(said) == is_yes_expected(truth))

    def compute(self) -> dict[str, float]:
        """Shares; 0 where there is nothing to divide by."""
        (true_no, false_yes), (false_no, true_yes) = self.counts.tolist()
        said_yes = false_yes + true_yes
        are_yes = false_no + true_yes
        total = true_no + false_no + said_yes
        return {
            "accuracy": (true_no + true_yes) / max(total, 1),
            "precision": true_yes / max(said_yes, 1),
            "recall": true_yes / max(are_yes, 1),
            "f1": 2 * true_yes / max(said_yes + are_yes, 1),
            "yes_rate": said_yes / max(total, 1),
        }


class MME(Metric):
    """MME (Fu et al. 2023, arXiv 2306.13394): two questions a picture, one to say yes to and one to say no.

    Of a category: accuracy over questions, accuracy+ over pictures (both right), score = 100 x their sum; a
    group's score is the sum of its categories'. An answer is read by its first four letters.
    """

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, groups: Mapping[str, Sequence[str]] | None = None):
        """`groups`: categories by group; MME's own if None."""
        super().__init__()
        self.groups: dict[str, tuple[str, ...]] = {}
        self.categories: list[str] = []
        for group, categories in (groups or MME_GROUPS).items():
            self.groups[group] = tuple(categories)
            self.categories += categories
        # (questions, 3): picture, category, right. A picture's questions may lie in different processes.
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(
        self,
        predictions: Sequence[str],
        answers: Sequence[str],
        pictures: Sequence[str],
        categories: Sequence[str],
    ) -> None:
        """One entry a question in each; a picture's name tells which questions are a pair."""
        rows = []
        columns = (predictions, answers, pictures, categories)
        for prediction, truth, picture, category in zip(*columns, strict=True):
            if category not in self.categories:
                raise UsageError(f"category={category}: not one of MME's{suggest(category, self.categories)}")
            answer = "yes" if is_yes_expected(truth) else "no"
            right = read_first_letters(prediction) == answer
            picture_id = hash_name(f"{category}/{picture}")
            rows.append((picture_id, self.categories.index(category), int(right)))
        self.rows.append(torch.tensor(rows, dtype=torch.long, device=self.device).reshape(-1, 3))

    def compute(self) -> dict[str, dict[str, float] | float]:
        """accuracy, accuracy_plus and score by category; each group's score. Categories not asked are left
        out. UsageError where a picture has not two questions."""
        pairs: dict[tuple[int, int], list[int]] = defaultdict(list)
        for picture, category, right in dim_zero_cat(self.rows).tolist():
            pairs[category, picture].append(right)
        odd = sum(len(pair) != 2 for pair in pairs.values())
        if odd:
            raise UsageError(
                f"MME scores pairs, but {odd} of {len(pairs)} pictures have not two questions; "
                "give all questions, each once"
            )
        pairs_of: dict[str, list[list[int]]] = defaultdict(list)
        for (category, _), pair in pairs.items():
            pairs_of[self.categories[category]].append(pair)
        accuracy: dict[str, float] = {}
        plus: dict[str, float] = {}
        score: dict[str, float] = {}
        for name, of_category in pairs_of.items():
            accuracy[name] = sum(map(sum, of_category)) / (2 * len(of_category))
            plus[name] = sum(map(all, of_category)) / len(of_category)
            score[name] = 100 * (accuracy[name] + plus[name])
        result: dict[str, dict[str, float] | float] = {
            "accuracy": accuracy,
            "accuracy_plus": plus,
            "score": score,
        }
        for group, categories in self.groups.items():
            result[group] = sum(score.get(name, 0.0) for name in categories)
        return result


def is_yes_expected(answer: str) -> bool:
    """Whether a question's truth is yes; a UsageError if it is neither yes nor no."""
    word = answer.strip().rstrip(".").lower()
    if word not in ("yes", "no"):
        raise UsageError(f"answer={answer!r}: the truth of a yes/no question must be yes or no")
    return word == "yes"


def means_yes(answer: str) -> bool:
    """POPE's reading: no if the first sentence has "no" or "not", else yes."""
    words = answer.lower().partition(".")[0].replace(",", "").split()
    return not {"no", "not"} & set(words)


def read_first_letters(answer: str) -> str:
    """MME's reading: yes, no or other, by the first four letters."""
    start = answer.lower().strip().replace(".", "")[:4]
    for word in ("yes", "no"):
        if word in start:
            return word
    return "other"


def hash_name(name: str) -> int:
    """A name as 64 bits: states of torchmetrics are tensors."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
