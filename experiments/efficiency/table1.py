"""The models of the paper's Table 1, as subjects."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config.presets import read_yaml
from experiments.efficiency.published import PUBLISHED_KINDS
from experiments.efficiency.subject import CellSubject, CostSubject
from experiments.models import build
from experiments.models.random_model import make_weightless_cells


def read_table1() -> dict[str, dict[str, Any]]:
    """What table1.yaml says of each model, by label."""
    return {entry["label"]: entry for entry in read_yaml(Path(__file__).with_suffix(".yaml"))["models"]}


def find_table1_entry(label: str) -> dict[str, Any]:
    """One of them, or a UsageError."""
    found = read_table1()
    if label not in found:
        raise UsageError(f"--only {label}: no model of Table 1{suggest(label, found)}")
    return found[label]


@contextmanager
def build_table1_subject(label: str) -> Iterator[CostSubject]:
    """A model without weights."""
    found = find_table1_entry(label)
    if "cell" not in found:
        yield PUBLISHED_KINDS[found["kind"]](label, found, found["source"])
        return
    with make_weightless_cells(found["cell"]) as (cell,):
        yield build_cell_subject(label, cell.config, found["source"])


def build_cell_subject(label: str, config, note: str = "") -> CellSubject:
    """A cell's model without weights."""
    with torch.device("meta"):
        model, size = build.build_skeleton(config)
    return CellSubject(label, config, model.eval().requires_grad_(False), size, note)
