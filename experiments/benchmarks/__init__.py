"""Scores of the field's benchmarks as torchmetrics: they add up over batches and processes."""

from experiments.benchmarks.choice import ChoiceAccuracy, read_choice
from experiments.benchmarks.documents import ANLS, RelaxedAccuracy
from experiments.benchmarks.vqa import VQAAccuracy, vqa_normalise
from experiments.benchmarks.yes_no import MME, POPE

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
