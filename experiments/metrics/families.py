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
    asked: Tensor

    def __init__(self, families: Sequence[str], metric: MeanScore | None = None):
        super().__init__()
        self.families = list(families)
        self.metric = ExactMatch() if metric is None else metric
        # whole scores are exact in float64, so that the order of batches changes nothing
        self.add_state("scores", torch.zeros(len(self.families), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("asked", torch.zeros(len(self.families), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], answers: Sequence[str], families: Sequence[str]) -> None:
        """One entry a question in each."""
        for prediction, answer, family in zip(predictions, answers, families, strict=True):
            row = self.families.index(family)
            self.asked[row] += 1
            self.scores[row] += self.metric.score(prediction, answer)

    def compute(self) -> dict[str, Any]:
        """overall, families, counts (questions of each), n (of all). A family never asked is left out."""
        scores: dict[str, float] = {}
        counts: dict[str, int] = {}
        for family, score, count in zip(self.families, self.scores.tolist(), self.asked.tolist()):
            if count:
                scores[family] = score
                counts[family] = count
        total = sum(counts.values())
        return {
            "overall": sum(scores.values()) / max(total, 1),
            "families": {family: scores[family] / counts[family] for family in counts},
            "counts": counts,
            "n": total,
        }
