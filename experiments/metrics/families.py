"""Scores of answers by family of questions, as torchmetrics: sums that add up over batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from experiments.metrics.exact import ExactMatch
from experiments.metrics.mean import MeanScore


class FamilyScores(Metric):
    """Mean score in each family of questions, and over all. `metric` scores one answer; None: exact match."""

    full_state_update = False
    scores: Tensor
    question_counts: Tensor

    def __init__(self, families: Sequence[str], metric: MeanScore | None = None):
        super().__init__()
        self.families = list(families)
        self.metric = ExactMatch() if metric is None else metric
        # whole scores are exact in float64, so that the order of batches changes nothing
        scores = torch.zeros(len(self.families), dtype=torch.float64)
        question_counts = torch.zeros(len(self.families), dtype=torch.long)
        self.add_state("scores", scores, dist_reduce_fx="sum")
        self.add_state("question_counts", question_counts, dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], answers: Sequence[str], families: Sequence[str]) -> None:
        """One entry a question in each."""
        for prediction, answer, family in zip(predictions, answers, families, strict=True):
            row = self.families.index(family)
            self.question_counts[row] += 1
            self.scores[row] += self.metric.score(prediction, answer)

    def compute(self) -> dict[str, Any]:
        """overall, families, counts (questions of each), n (of all). A family never asked is left out."""
        scores: list[float] = []
        means: dict[str, float] = {}
        counts: dict[str, int] = {}
        for row, family in enumerate(self.families):
            count = int(self.question_counts[row])
            if count == 0:
                continue
            score = float(self.scores[row])
            scores.append(score)
            means[family] = score / count
            counts[family] = count
        total = sum(counts.values())
        return {
            "overall": sum(scores) / max(total, 1),
            "families": means,
            "counts": counts,
            "n": total,
        }
