"""The models of the paper's Table 1, as subjects."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config.presets import read_yaml
from experiments.efficiency.published import KINDS
from experiments.efficiency.subject import OfCell, Subject
from experiments.models import build
from experiments.models.random_model import random_cells


def entries() -> dict[str, dict[str, Any]]:
    """What table1.yaml says of each model, by label."""
    return {entry["label"]: entry for entry in read_yaml(Path(__file__).with_suffix(".yaml"))["models"]}


def entry(label: str) -> dict[str, Any]:
    """One of them, or a UsageError."""
    found = entries()
    if label not in found:
        raise UsageError(f"--only {label}: no model of Table 1{suggest(label, found)}")
    return found[label]


@contextmanager
def on_meta(label: str) -> Iterator[Subject]:
    """A model without weights."""
    found = entry(label)
    if "cell" not in found:
        yield KINDS[found["kind"]](label, found, found["source"])
        return
    with random_cells(found["cell"]) as (cell,):
        yield cell_on_meta(label, cell.config, found["source"])


def cell_on_meta(label: str, config, note: str = "") -> OfCell:
    """A cell's model without weights."""
    with torch.device("meta"):
        model, size = build.skeleton(config)
    return OfCell(label, config, model.eval().requires_grad_(False), size, note)
