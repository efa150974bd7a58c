"""Scores of answers as torchmetrics: sums of counts, so they add up over batches and processes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from experiments.metrics.answers import majority_rates, normalise

__all__ = ["FamilyAccuracy", "majority_rates", "normalise"]


class FamilyAccuracy(Metric):
    """Share of right answers (equal after `normalise`) in each family of questions, and over all."""

    full_state_update = False
    right: Tensor
    asked: Tensor

    def __init__(self, families: Sequence[str]):
        super().__init__()
        self.families = list(families)
        for name in ("right", "asked"):
            self.add_state(name, torch.zeros(len(self.families), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, predictions: Sequence[str], answers: Sequence[str], families: Sequence[str]) -> None:
        """One entry a question in each."""
        for said, truth, family in zip(predictions, answers, families, strict=True):
            row = self.families.index(family)
            self.asked[row] += 1
            self.right[row] += normalise(said) == normalise(truth)

    def compute(self) -> dict[str, Any]:
        """overall, families, counts (questions of each), n (of all). A family never asked is left out."""
        rows = {f: (int(r), int(a)) for f, r, a in zip(self.families, self.right, self.asked) if a}
        total = sum(a for _, a in rows.values())
        return {
            "overall": sum(r for r, _ in rows.values()) / max(total, 1),
            "families": {f: r / a for f, (r, a) in rows.items()},
            "counts": {f: a for f, (_, a) in rows.items()},
            "n": total,
        }
