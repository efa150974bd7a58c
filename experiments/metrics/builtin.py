"""Scores of the field's benchmarks as torchmetrics: they add up over batches and processes."""

from experiments.metrics.choice import ChoiceAccuracy, read_choice
from experiments.metrics.documents import ANLS, RelaxedAccuracy
from experiments.metrics.vqa import VQAAccuracy, vqa_normalise
from experiments.metrics.yes_no import MME, POPE

__all__ = [
    "ANLS",
    "MME",
    "POPE",
    "ChoiceAccuracy",
    "RelaxedAccuracy",
    "VQAAccuracy",
    "read_choice",
    "vqa_normalise",
]
