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
from experiments.efficiency.counting import count
from experiments.efficiency.machine import check_memory
from experiments.efficiency.measuring import Case, measure, steps
from experiments.efficiency.subject import OfCell, Pictures, Subject
from experiments.models.random_model import TEXT, fill, random_cells, set_placeholders
from experiments.runtime.progress import Reporter

Row = dict[str, Any]
FILE = "efficiency.json"


def pictures(size: tuple[int, int], batch: int, images: int) -> Pictures:
    """Noise, the same for each row."""
    return [[Image.effect_noise(size, 64).convert("RGB")] * images] * batch


def cells(given: argparse.Namespace, report: Reporter) -> list[Row]:
    """Rows of this project's cells."""
    with random_cells(given.overrides) as found:
        subjects = [table1.cell_on_meta(cell.label, cell.config) for cell in found]
        references = {cell.label: reference(cell, found) for cell in found}
        rows = compare(subjects, given, given.pictures, report, not given.count)
    return [{**row, "reference": references[row["label"]]} for row in rows]


def reference(cell: Cell, others: Sequence[Cell]) -> str | None:
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


def compare(
    subjects: Sequence[Subject],
    given: argparse.Namespace,
    sizes: Sequence[tuple[int, int]],
    report: Reporter,
    timed: bool,
) -> list[Row]:
    """Counts of all subjects, which are on the meta device; if `timed`, also measurements, in turn."""
    cases = [(size, batch, images) for size in sizes for batch in given.batch for images in given.images]
    rows: dict[tuple, Row] = {}
    report.stage("counting")
    report.steps(len(cases) * len(subjects))
    for case in cases:
        for subject in subjects:
            rows[case, subject.label] = counted(subject, case, given)
            report.advance()
    if timed:
        give_weights(subjects, given)
        report.stage("measuring")
        report.steps(len(cases) * steps(len(subjects), given.rounds))
        for case in cases:
            made = {
                s.label: Case(s, pictures(*case), given.text or TEXT, given.tokens, given.static)
                for s in subjects
            }
            for label, found in measure(made, given.rounds, report.advance).items():
                rows[case, label]["measured"] = asdict(found)
    return list(rows.values())


def counted(subject: Subject, case: tuple, given: argparse.Namespace) -> Row:
    """A row without times."""
    (width, height), batch, images = case
    found = count(subject, pictures(*case), given.text or TEXT, getattr(torch, given.dtype))
    return {
        "label": subject.label,
        "note": subject.note,
        "attention": subject.attention,
        "picture": f"{width}x{height}",
        "batch": batch,
        "images": images,
        "counts": found.asdict(),
        "measured": None,
        "failed": None,
    }


def give_weights(subjects: Sequence[Subject], given: argparse.Namespace) -> None:
    """Random ones. Cells with the same backbones share these. UsageError for more than the memory holds."""
    for i, subject in enumerate(subjects):
        check_memory(subject, given)
        fill(subject.model, torch.device(given.device), getattr(torch, given.dtype))
        if isinstance(subject, OfCell):
            set_placeholders(subject.model)
            for other in subjects[:i]:
                for part in ("vision_tower", "language_model"):
                    adopt(getattr(subject.model, part), getattr(other.model, part))


def adopt(module: torch.nn.Module, other: torch.nn.Module) -> None:
    """The other's weights, if they are of the same names and shapes."""
    theirs = dict(other.named_parameters())
    own = dict(module.named_parameters())
    if {name: p.shape for name, p in own.items()} == {name: p.shape for name, p in theirs.items()}:
        for name, parameter in own.items():
            parameter.data = theirs[name].data


def models_of_table1(given: argparse.Namespace, report: Reporter) -> list[Row]:
    """Rows of Table 1. Measured models have a process each: one that does not fit leaves the others alone."""
    labels = [given.only] if given.only else list(table1.entries())
    report.cells(len(labels))
    rows = []
    for label in labels:
        report.cell(label)
        alone = given.only or not given.measure
        rows += list(one_of_table1(label, given, report) if alone else in_a_process(label, given))
    return rows


def one_of_table1(label: str, given: argparse.Namespace, report: Reporter) -> Iterator[Row]:
    """One model, here."""
    sizes = given.pictures if table1.entry(label)["resolutions"] == "dynamic" else given.pictures[:1]
    with table1.on_meta(label) as subject:
        for row in compare([subject], given, sizes, report, given.measure):
            fixed = {} if table1.entry(label)["resolutions"] == "dynamic" else {"picture": "any"}
            yield {**row, **fixed, "reference": "FlashSloth"}


def in_a_process(label: str, given: argparse.Namespace) -> list[Row]:
    """One model, elsewhere. If that fails, its counts and the reason."""
    with TemporaryDirectory() as folder:
        done = subprocess.run(
            [*arguments(label, given), "--measure", "--to", folder], capture_output=True, text=True
        )
        if done.returncode == 0:
            return json.loads(Path(folder, FILE).read_text(encoding="utf-8"))["rows"]
    words = done.stderr.strip().splitlines()
    reason = words[-1] if words else f"ended with exit code {done.returncode}"
    given = argparse.Namespace(**{**vars(given), "measure": False})
    return [{**row, "failed": reason} for row in one_of_table1(label, given, Reporter())]


def arguments(label: str, given: argparse.Namespace) -> list[str]:
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


def training_steps(given: argparse.Namespace, report: Reporter) -> list[Row]:
    """Both stages of each cell."""
    rows = []
    with random_cells(given.overrides) as found:
        report.cells(len(found))
        for cell in found:
            report.cell(cell.label)
            for i, stage in enumerate(training.ROLES):
                report.stage(stage)
                data = given.data_rows[i] if given.data_rows else training.ROWS[stage]
                text = given.text or training.TEXT[stage]
                measured = training.measure(
                    cell.config, stage, given.rounds, text, data, torch.device(given.device), report
                )
                rows.append(
                    {"label": cell.label, "stage": stage, "hours": measured.hours, **asdict(measured)}
                )
    return rows
