"""Scores of answers as torchmetrics: sums of counts, so they add up over batches and processes."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from experiments.answers import majority_rates, normalise

__all__ = ["FamilyAccuracy", "PresenceScores", "majority_rates", "normalise"]


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


class PresenceScores(Metric):
    """POPE's scores of yes/no questions: precision, recall and F1 of "yes", accuracy, share of "yes".

    An answer that does not begin with "yes" counts as "no", as in POPE.
    """

    full_state_update = False
    counts: Tensor

    def __init__(self):
        super().__init__()
        self.add_state("counts", torch.zeros(2, 2, dtype=torch.long), dist_reduce_fx="sum")  # [truth, said]

    def update(self, predictions: Sequence[str], answers: Sequence[str]) -> None:
        """One entry a question in each."""
        for said, truth in zip(predictions, answers, strict=True):
            self.counts[int(is_yes(truth)), int(is_yes(said))] += 1

    def compute(self) -> dict[str, float]:
        """Shares; 0 where there is nothing to divide by."""
        (true_no, false_yes), (false_no, true_yes) = self.counts.tolist()
        said_yes, are_yes = false_yes + true_yes, false_no + true_yes
        total = true_no + false_no + said_yes
        return {
            "precision": true_yes / max(said_yes, 1),
            "recall": true_yes / max(are_yes, 1),
            "f1": 2 * true_yes / max(said_yes + are_yes, 1),
            "accuracy": (true_no + true_yes) / max(total, 1),
            "yes_rate": said_yes / max(total, 1),
        }


def is_yes(answer: str) -> bool:
    """Whether an answer begins with "yes"."""
    return normalise(answer).split(" ")[0] == "yes"
