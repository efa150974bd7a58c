"""Rows of a result: what is counted and measured of which model, as plain data."""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from experiments.config.cells import Cell
from experiments.efficiency import table1, training
from experiments.efficiency.counting import count_subject
from experiments.efficiency.machine import check_weights_fit
from experiments.efficiency.measuring import BenchmarkCase, count_measuring_steps, measure_cases
from experiments.efficiency.subject import CellSubject, CostSubject, PictureRows
from experiments.models.random_model import (
    TEXT_TOKENS,
    fill_weights,
    make_weightless_cells,
    set_placeholder_ids,
)
from experiments.runtime.progress import Reporter

EfficiencyRow = dict[str, Any]
RESULT_FILE = "efficiency.json"


def make_noise_pictures(size: tuple[int, int], batch: int, images: int) -> PictureRows:
    """Noise, the same for each row."""
    return [[Image.effect_noise(size, 64).convert("RGB")] * images] * batch


def measure_cells(given: argparse.Namespace, report: Reporter) -> list[EfficiencyRow]:
    """Rows of this project's cells."""
    with make_weightless_cells(given.overrides) as found:
        subjects = [table1.build_cell_subject(cell.label, cell.config) for cell in found]
        references = {cell.label: find_uncompressed_label(cell, found) for cell in found}
        rows = compare_subjects(subjects, given, given.pictures, report, not given.count)
    return [{**row, "reference": references[row["label"]]} for row in rows]


def find_uncompressed_label(cell: Cell, others: Sequence[Cell]) -> str | None:
    """The same model without compression, if it is among the others."""

    def same(config) -> tuple:
        return config.tower.source, config.tower.select_layer, config.llm.source, str(config.image)

    return next(
        (
            other.label
            for other in others
            if other.config.compressor == "identity" and same(other.config) == same(cell.config)
        ),
        None,
    )


def compare_subjects(
    subjects: Sequence[CostSubject],
    given: argparse.Namespace,
    sizes: Sequence[tuple[int, int]],
    report: Reporter,
    timed: bool,
) -> list[EfficiencyRow]:
    """Counts of all subjects, which are on the meta device; if `timed`, also measurements, in turn."""
    cases = [(size, batch, images) for size in sizes for batch in given.batch for images in given.images]
    rows: dict[tuple, EfficiencyRow] = {}
    report.begin_stage("counting")
    report.announce_steps(len(cases) * len(subjects))
    for case in cases:
        for subject in subjects:
            rows[case, subject.label] = make_counted_row(subject, case, given)
            report.advance_steps()
    if timed:
        give_weights(subjects, given)
        report.begin_stage("measuring")
        report.announce_steps(len(cases) * count_measuring_steps(len(subjects), given.rounds))
        for case in cases:
            made = {
                s.label: BenchmarkCase(
                    s, make_noise_pictures(*case), given.text or TEXT_TOKENS, given.tokens, given.static
                )
                for s in subjects
            }
            for label, found in measure_cases(made, given.rounds, report.advance_steps).items():
                rows[case, label]["measured"] = asdict(found)
    return list(rows.values())


def make_counted_row(subject: CostSubject, case: tuple, given: argparse.Namespace) -> EfficiencyRow:
    """A row without times."""
    (width, height), batch, images = case
    found = count_subject(
        subject, make_noise_pictures(*case), given.text or TEXT_TOKENS, getattr(torch, given.dtype)
    )
    return {
        "label": subject.label,
        "note": subject.note,
        "attention": subject.attention,
        "picture": f"{width}x{height}",
        "batch": batch,
        "images": images,
        "counts": found.to_json_dict(),
        "measured": None,
        "failed": None,
    }


def give_weights(subjects: Sequence[CostSubject], given: argparse.Namespace) -> None:
    """Random ones. Cells with the same backbones share these. UsageError for more than the memory holds."""
    for i, subject in enumerate(subjects):
        check_weights_fit(subject, given)
        fill_weights(subject.model, torch.device(given.device), getattr(torch, given.dtype))
        if isinstance(subject, CellSubject):
            set_placeholder_ids(subject.model)
            for other in subjects[:i]:
                for part in ("vision_tower", "language_model"):
                    adopt_weights(getattr(subject.model, part), getattr(other.model, part))


def adopt_weights(module: torch.nn.Module, other: torch.nn.Module) -> None:
    """The other's weights, if they are of the same names and shapes."""
    theirs = dict(other.named_parameters())
    own = dict(module.named_parameters())
    if {name: p.shape for name, p in own.items()} == {name: p.shape for name, p in theirs.items()}:
        for name, parameter in own.items():
            parameter.data = theirs[name].data


def measure_table1(given: argparse.Namespace, report: Reporter) -> list[EfficiencyRow]:
    """Rows of Table 1. Measured models have a process each: one that does not fit leaves the others alone."""
    labels = [given.only] if given.only else list(table1.read_table1())
    report.announce_cells(len(labels))
    rows = []
    for label in labels:
        report.begin_cell(label)
        alone = given.only or not given.measure
        rows += list(
            measure_table1_model(label, given, report) if alone else measure_in_process(label, given)
        )
    return rows


def measure_table1_model(label: str, given: argparse.Namespace, report: Reporter) -> Iterator[EfficiencyRow]:
    """One model, here."""
    sizes = (
        given.pictures if table1.find_table1_entry(label)["resolutions"] == "dynamic" else given.pictures[:1]
    )
    with table1.build_table1_subject(label) as subject:
        for row in compare_subjects([subject], given, sizes, report, given.measure):
            fixed = {} if table1.find_table1_entry(label)["resolutions"] == "dynamic" else {"picture": "any"}
            yield {**row, **fixed, "reference": "FlashSloth"}


def measure_in_process(label: str, given: argparse.Namespace) -> list[EfficiencyRow]:
    """One model, elsewhere. If that fails, its counts and the reason."""
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [*build_model_command(label, given), "--measure", "--to", folder], capture_output=True, text=True
        )
        if done.returncode == 0:
            return json.loads(Path(folder, RESULT_FILE).read_text(encoding="utf-8"))["rows"]
    words = done.stderr.strip().splitlines()
    reason = words[-1] if words else f"ended with exit code {done.returncode}"
    given = argparse.Namespace(**{**vars(given), "measure": False})
    return [{**row, "failed": reason} for row in measure_table1_model(label, given, Reporter())]


def build_model_command(label: str, given: argparse.Namespace) -> list[str]:
    """The command for one model of Table 1."""
    listed = {
        "batch": given.batch,
        "images": given.images,
        "pictures": [f"{width}x{height}" for width, height in given.pictures],
    }
    words = {name: ",".join(map(str, values)) for name, values in listed.items()}
    for name in ("text", "tokens", "rounds", "device", "dtype", "threads"):
        if getattr(given, name):
            words[name] = str(getattr(given, name))
    found = [sys.executable, "-m", "experiments.efficiency", "--only", label]
    found += [word for name, text in words.items() for word in (f"--{name}", text)]
    return [*found, *(["--static"] if given.static else [])]


def measure_training_stages(given: argparse.Namespace, report: Reporter) -> list[EfficiencyRow]:
    """Both stages of each cell."""
    rows = []
    with make_weightless_cells(given.overrides) as found:
        report.announce_cells(len(found))
        for cell in found:
            report.begin_cell(cell.label)
            for i, stage in enumerate(training.TRAINING_ROLES):
                report.begin_stage(stage)
                data = given.data_rows[i] if given.data_rows else training.PAPER_ROWS[stage]
                text = given.text or training.STAGE_TEXT_TOKENS[stage]
                measured = training.measure_training(
                    cell.config, stage, given.rounds, text, data, torch.device(given.device), report
                )
                rows.append(
                    {
                        "label": cell.label,
                        "stage": stage,
                        "hours": measured.estimated_hours,
                        **asdict(measured),
                    }
                )
    return rows
