"""The base of benchmarks whose score is a mean over questions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from compressors.errors import UsageError


class MeanScore(Metric):
    """Mean over questions of `score`, which subclasses define; from 0 to 1, 0 before any question."""

    full_state_update = False
    higher_is_better = True
    total: Tensor
    question_count: Tensor

    def __init__(self) -> None:
        super().__init__()
        # float64: sums of whole scores are exact, so that the order of batches changes nothing
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("question_count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], truths: Sequence[Any]) -> None:
        """One entry a question in each; what a truth is, `score` says."""
        for prediction, truth in zip(predictions, truths, strict=True):
            self.total += self.score(prediction, truth)
            self.question_count += 1

    def compute(self) -> float:
        return float(self.total) / max(int(self.question_count), 1)

    def read_truth(self, answer: str | Sequence[str], question: str) -> Any:  # noqa: ARG002  others read it
        """What `score` takes as the truth, from a data set's answer, or all that it accepts, and question."""
        return answer

    def score(self, said: str, truth: Any) -> float:
        """One question's score, 0 to 1."""
        raise NotImplementedError


def list_accepted_answers(truth: str | Sequence[str]) -> Sequence[str]:
    """The accepted answers to a question, of which there must be one."""
    answers = [truth] if isinstance(truth, str) else truth
    if not answers:
        raise UsageError("answers=[]: a question without any accepted answer; give one, or drop the question")
    return answers
