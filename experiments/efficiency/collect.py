"""Rows of a result: what is counted and measured of which model, as plain data."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from compressors.errors import UsageError
from compressors.key_value import join_settings
from experiments.config.cells import Cell
from experiments.config.schema import Config
from experiments.efficiency import table1, training
from experiments.efficiency.conditions import (
    Machine,
    MeasuringPlan,
    PictureCase,
    PictureSize,
    check_weights_fit,
)
from experiments.efficiency.counting import count_subject
from experiments.efficiency.measuring import BenchmarkCase, count_measuring_steps, measure_cases
from experiments.efficiency.subject import CellSubject, CostSubject, PictureRows
from experiments.models.random_model import fill_weights, make_weightless_cells, set_placeholder_ids
from experiments.runtime.progress import Reporter
from experiments.store.plan import TRAINING_ROLES

# a line of efficiency.json: label, picture, batch, images, counts and, where they were measured, times
EfficiencyRow = dict[str, Any]
RESULT_FILE = "efficiency.json"
ANY_PICTURE = "any"  # of a row whose model costs the same for all
TABLE1_REFERENCE = "FlashSloth"  # what the other models of Table 1 are compared with


def make_noise_pictures(size: PictureSize, batch: int, images: int) -> PictureRows:
    """Noise, the same for each row."""
    return [[Image.effect_noise(size, 64).convert("RGB")] * images] * batch


def measure_cells(
    overrides: Sequence[str], plan: MeasuringPlan, machine: Machine, report: Reporter, timed: bool
) -> list[EfficiencyRow]:
    """Rows of this project's cells, counted and, if `timed`, measured. UsageError for a pruner beside a cache
    of fixed size."""
    with make_weightless_cells(overrides) as cells:
        for cell in cells:
            if timed and plan.static and cell.config.prune is not None:
                raise UsageError(
                    "static=true: a cache of fixed size has no layers of different lengths, which "
                    f"prune={cell.config.prune} makes; leave one of them out"
                )
        subjects = [table1.build_cell_subject(cell.label, cell.config) for cell in cells]
        rows = compare_subjects(subjects, plan, machine, report, timed)
        references = {cell.label: find_uncompressed_label(cell, cells) for cell in cells}
    for row in rows:
        row["reference"] = references[row["label"]]
    return rows


def find_uncompressed_label(cell: Cell, others: Sequence[Cell]) -> str | None:
    """The same model without compression, if it is among the others."""
    backbones = describe_backbones(cell.config)
    for candidate in others:
        config = candidate.config
        is_whole = config.compressor == config.evaluated_compressor == "identity" and config.prune is None
        if is_whole and describe_backbones(config) == backbones:
            return candidate.label
    return None


def describe_backbones(config: Config) -> tuple[object, ...]:
    """What models must have in common to be compared: all but compressor and query module."""
    return config.tower.source, config.tower.select_layer, config.llm.source, str(config.image)


def compare_subjects(
    subjects: Sequence[CostSubject],
    plan: MeasuringPlan,
    machine: Machine,
    report: Reporter,
    timed: bool,
) -> list[EfficiencyRow]:
    """Counts of all subjects, which are on the meta device; if `timed`, also measurements, in turn."""
    cases = plan.list_cases()
    rows: dict[tuple[PictureCase, str], EfficiencyRow] = {}
    report.begin_stage("counting")
    report.announce_steps(len(cases) * len(subjects))
    for case in cases:
        for subject in subjects:
            rows[case, subject.label] = make_counted_row(subject, case, plan.text, machine.dtype)
            report.advance_steps()
    if timed:
        # not before all are counted: counting needs the meta device
        give_weights(subjects, machine)
        if plan.compiled:
            for subject in subjects:
                subject.compile_layers()
        report.begin_stage("measuring")
        report.announce_steps(len(cases) * count_measuring_steps(len(subjects), plan.rounds))
        for case in cases:
            benchmarks = {}
            for subject in subjects:
                pictures = make_noise_pictures(*case)
                benchmarks[subject.label] = BenchmarkCase(
                    subject, pictures, plan.text, plan.tokens, plan.static
                )
            measurements = measure_cases(benchmarks, plan.rounds, report.advance_steps)
            for label, measured in measurements.items():
                rows[case, label]["measured"] = asdict(measured)
    return list(rows.values())


def make_counted_row(subject: CostSubject, case: PictureCase, text: int, dtype: torch.dtype) -> EfficiencyRow:
    """A row without times."""
    width, height = case.size
    counts = count_subject(subject, make_noise_pictures(*case), text, dtype)
    return {
        "label": subject.label,
        "note": subject.note,
        "attention": subject.attention,
        "picture": f"{width}x{height}",
        "batch": case.batch,
        "images": case.images,
        "counts": asdict(counts),
        "measured": None,
        "failed": None,
    }


def give_weights(subjects: Sequence[CostSubject], machine: Machine) -> None:
    """Random ones. Cells with the same backbones share these. UsageError for more than the memory holds."""
    # one after another: beside what cells share, memory holds no more than one cell's own backbones
    for number, subject in enumerate(subjects):
        check_weights_fit(subject, machine)
        fill_weights(subject.model, machine.device, machine.dtype)
        if not isinstance(subject, CellSubject):
            continue
        set_placeholder_ids(subject.model)
        for filled in subjects[:number]:
            for part in ("vision_tower", "language_model"):
                adopt_weights(getattr(subject.model, part), getattr(filled.model, part))


def adopt_weights(module: torch.nn.Module, other: torch.nn.Module) -> None:
    """The other's weights, if they are of the same names and shapes."""
    if list_parameter_shapes(module) != list_parameter_shapes(other):
        return
    their_parameters = dict(other.named_parameters())
    # its own are dropped: memory holds a backbone once, however many cells there are
    for name, parameter in module.named_parameters():
        parameter.data = their_parameters[name].data


def list_parameter_shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    """The shape of each parameter by its name."""
    return {name: parameter.shape for name, parameter in module.named_parameters()}


def measure_table1(
    labels: Sequence[str], plan: MeasuringPlan, machine: Machine, report: Reporter, timed: bool
) -> list[EfficiencyRow]:
    """Rows of models of Table 1. Of several measured models each has a process: one that does not fit leaves
    the others alone."""
    in_processes = timed and len(labels) > 1
    report.announce_cells(len(labels))
    rows = []
    for label in labels:
        report.begin_cell(label)
        if in_processes:
            rows += measure_in_process(label, plan, machine)
        else:
            rows += measure_table1_model(label, plan, machine, report, timed)
    return rows


def measure_table1_model(
    label: str, plan: MeasuringPlan, machine: Machine, report: Reporter, timed: bool
) -> list[EfficiencyRow]:
    """One model, here: a row for each size of picture if what it sees depends on that, else one for any."""
    dynamic = table1.find_table1_entry(label)["resolutions"] == "dynamic"
    if not dynamic:
        plan = replace(plan, pictures=plan.pictures[:1])
    with table1.build_table1_subject(label) as subject:
        rows = compare_subjects([subject], plan, machine, report, timed)
    for row in rows:
        if not dynamic:
            row["picture"] = ANY_PICTURE
        row["reference"] = TABLE1_REFERENCE
    return rows


def measure_in_process(label: str, plan: MeasuringPlan, machine: Machine) -> list[EfficiencyRow]:
    """One model, elsewhere. If that fails, its counts and the reason."""
    with TemporaryDirectory() as folder:
        command = [*build_model_command(label, plan, machine), "measure=true", f"to={folder}"]
        process = subprocess.run(command, capture_output=True, text=True)
        if process.returncode == 0:
            return json.loads(Path(folder, RESULT_FILE).read_text(encoding="utf-8"))["rows"]
    reason = f"ended with exit code {process.returncode}"
    error_lines = process.stderr.strip().splitlines()
    if error_lines:
        reason = error_lines[-1]  # our own error or, of a crash, what was raised
    rows = measure_table1_model(label, plan, machine, Reporter(), timed=False)
    for row in rows:
        row["failed"] = reason
    return rows


def build_model_command(label: str, plan: MeasuringPlan, machine: Machine) -> list[str]:
    """The command for one model of Table 1."""
    sizes = [f"{width}x{height}" for width, height in plan.pictures]
    settings: dict[str, list[Any]] = {
        "only": [label],
        "pictures": sizes,
        "batch": list(plan.batches),
        "images": list(plan.images),
        "text": [plan.text],
        "tokens": [plan.tokens],
        "rounds": [plan.rounds],
        "device": [machine.device],
        "dtype": [machine.dtype_name],
    }
    if machine.threads:
        settings["threads"] = [machine.threads]
    if plan.static:
        settings["static"] = ["true"]
    texts = {key: list(map(str, values)) for key, values in settings.items()}
    return [sys.executable, "-m", "experiments.efficiency", *join_settings(texts)]


def measure_training_stages(
    overrides: Sequence[str],
    rounds: int,
    text: int | None,
    data_rows: Sequence[int],
    device: torch.device,
    report: Reporter,
) -> list[EfficiencyRow]:
    """Both stages of each cell.

    text       text tokens of a row; None: what suits the stage
    data_rows  rows of both stages' data; none: the paper's
    """
    rows = []
    with make_weightless_cells(overrides) as cells:
        for cell in cells:
            if cell.config.blind:
                raise UsageError(f"{cell.label}: sees no image; measure the training of cells that do")
        report.announce_cells(len(cells))
        for cell in cells:
            report.begin_cell(cell.label)
            for number, stage in enumerate(TRAINING_ROLES):
                report.begin_stage(stage)
                rows_of_data = data_rows[number] if data_rows else training.PAPER_ROWS[stage]
                text_of_row = text or training.STAGE_TEXT_TOKENS[stage]
                cost = training.measure_training(
                    cell.config, stage, rounds, text_of_row, rows_of_data, device, report
                )
                identity = {"label": cell.label, "stage": stage, "hours": cost.estimated_hours}
                rows.append({**identity, **asdict(cost)})
    return rows
