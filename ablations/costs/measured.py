"""TTFT and peak memory of a report's rows, measured on the device that the report is made on.

`measure=true` measures all rows in one run, in turn, round by round (`experiments.efficiency`), with random
weights, which cost what trained ones do. Results are kept beside the report, with where they were measured;
later reports in that folder show them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations.costs import prefill
from ablations.outcomes import Report, ReportRow
from compressors.errors import UsageError
from compressors.reading import read_json_file
from compressors.registry import conform
from experiments.config.schema import Config
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter

if TYPE_CHECKING:  # torch: a report is made without it
    from experiments.efficiency.measuring import CaseMeasurements
    from experiments.efficiency.subject import CellSubject

MEASURED_FILE = "measured.json"
MEASURING_ROUNDS = 9


def add_measured_columns(
    report: Report, rows: Sequence[tuple[ReportRow, Config]], folder: Path, measuring: Reporter | None
) -> None:
    """Columns of the rows that were measured, kept in `folder`. `measuring`: measure them now and say how far
    it is; None: show what was measured before."""
    if measuring is None:
        measurements = read_measurements(folder)
    else:
        measurements = measure_configs([config for _, config in rows], measuring)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / MEASURED_FILE, json.dumps(measurements, indent=1) + "\n")
    for row, config in rows:
        columns = measurements["rows"].get(find_cost_key(config))
        if columns:
            row.efficiency |= columns
            report.provenance["measured"] = measurements["where"]


def read_measurements(folder: Path) -> dict[str, Any]:
    """What was measured before; nothing from a file that is missing or damaged."""
    try:
        content = read_json_file(folder / MEASURED_FILE)
        describe_measurement(content["where"])  # has all that is said of it
        rows = conform(content["rows"], dict[str, dict[str, int | float]], "rows")
        return {"where": content["where"], "rows": rows}
    except (UsageError, KeyError, TypeError):
        return {"where": {}, "rows": {}}


def find_cost_key(config: Config) -> str | None:
    """What the cost follows from; None where the models are out of reach."""
    try:
        return prefill.digest_prefill(config)
    except UsageError:
        return None


def measure_configs(configs: Sequence[Config], reporter: Reporter) -> dict[str, Any]:
    """Every configuration once, side by side: its columns by cost key as `rows`, the conditions as `where`.
    Imports torch."""
    from experiments.efficiency import collect, measuring
    from experiments.efficiency.conditions import MeasuringPlan, describe_conditions, settle_machine

    plan = MeasuringPlan(
        pictures=(),  # each model sees a picture of its tower's size
        text=prefill.PREFILL_TEXT_TOKENS,
        tokens=1,
        rounds=MEASURING_ROUNDS,
    )
    place = settle_machine()
    conditions = describe_conditions(place, plan)
    configs_by_key: dict[str, Config] = {}
    for config in configs:
        key = find_cost_key(config)
        if key is not None:
            configs_by_key[key] = config
    subjects = []
    for key, config in configs_by_key.items():
        subjects.append(build_unfitted_subject(key, config))
    collect.give_weights(subjects, place)
    cases: dict[str, measuring.BenchmarkCase] = {}
    for subject in subjects:
        pictures = collect.make_noise_pictures((subject.size, subject.size), 1, 1)
        cases[subject.label] = measuring.BenchmarkCase(subject, pictures, plan.text, plan.tokens)
    reporter.begin_stage("measuring")
    reporter.announce_steps(measuring.count_measuring_steps(len(cases), MEASURING_ROUNDS))
    measurements = measuring.measure_cases(cases, MEASURING_ROUNDS, reporter.advance_steps)
    conditions["attention"] = ", ".join(sorted({subject.attention for subject in subjects}))
    rows = {}
    for key, case_measurements in measurements.items():
        rows[key] = make_measured_columns(case_measurements)
    return {"where": conditions, "rows": rows}


def build_unfitted_subject(key: str, config: Config) -> "CellSubject":
    """A cell's model without weights. A pruner that a calibration would fit drops as its budget says."""
    from experiments.efficiency.table1 import build_cell_subject

    subject = build_cell_subject(key, config)
    pruner = subject.model.pruner
    if pruner is not None and pruner.samples:
        assert config.prune is not None  # the model has what the configuration says
        knobs = config.knobs(config.prune)
        knobs["recipe"] = pruner.known_shares()
        subject.model.set_pruner(config.prune, **knobs)
    return subject


def make_measured_columns(measurements: "CaseMeasurements") -> dict[str, float]:
    """TTFT in ms with its spread, and peak memory in MiB."""
    ttft = measurements.ttft  # seconds
    return {
        "ttft_ms": round(1e3 * ttft.median, 3),
        "ttft_ms_low": round(1e3 * ttft.low, 3),
        "ttft_ms_high": round(1e3 * ttft.high, 3),
        "peak_memory_mib": round(measurements.peak_bytes / 2**20, 3),
    }


def describe_measurement(conditions: Mapping[str, Any]) -> str:
    """Where and how the columns were measured."""
    return (
        f"TTFT and peak memory: {conditions['device_name']}, {conditions['dtype']}, "
        f"{conditions['threads']} threads, attention {conditions['attention']}, torch {conditions['torch']}: "
        f"one picture of the tower's size, {conditions['text_tokens']} text tokens, from pixels to the "
        f"first token; median of {conditions['rounds']} rounds in which all rows took turns; random weights; "
        "memory of weights and activations."
    )
