"""TTFT and peak memory of a report's rows, measured on the device that the report is made on.

`measure=true` measures all rows in one run, in turn, round by round (`experiments.efficiency`), with random
weights, which cost what trained ones do. Results are kept beside the report, with where they were measured;
later reports in that folder show them.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations.costs import prefill
from ablations.outcomes import Report, ReportRow
from compressors.errors import UsageError
from experiments.config.schema import Config
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter

MEASURED_FILE, MEASURING_ROUNDS = "measured.json", 9


def add_measured_columns(
    report: Report, rows: Sequence[tuple[ReportRow, Config]], folder: Path, told: Reporter | None
) -> None:
    """Columns of the rows that were measured. `told`: measure them now and say how far it is; None: show what
    was measured before."""
    known = (
        read_measurements(folder) if told is None else measure_configs([config for _, config in rows], told)
    )
    if told is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / MEASURED_FILE, json.dumps(known, indent=1) + "\n")
    for row, config in rows:
        found = known["rows"].get(find_cost_key(config))
        if found:
            row.efficiency |= found
            report.made["measured"] = known["where"]


def read_measurements(folder: Path) -> dict[str, Any]:
    """What was measured before; nothing from a file that is missing or damaged."""
    try:
        content = json.loads((folder / MEASURED_FILE).read_text(encoding="utf-8"))
        return {"where": content["where"], "rows": dict(content["rows"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"where": {}, "rows": {}}


def find_cost_key(config: Config) -> str | None:
    """What the cost follows from; None where the models are out of reach."""
    try:
        return prefill.digest_prefill(config)
    except UsageError:
        return None


def measure_configs(configs: Sequence[Config], told: Reporter) -> dict[str, Any]:
    """Every configuration once, side by side. Imports torch."""
    from experiments.efficiency import collect, machine, measuring
    from experiments.efficiency.plan import MeasuringPlan

    plan = MeasuringPlan(
        pictures=(), text=prefill.PREFILL_TEXT_TOKENS, tokens=1, rounds=MEASURING_ROUNDS
    )  # each model sees a picture of its tower's size
    place = machine.settle_machine()
    where = machine.describe_conditions(place, plan)
    known = {find_cost_key(config): config for config in configs}
    subjects = [build_unfitted_subject(key, config) for key, config in known.items() if key is not None]
    collect.give_weights(subjects, place)
    cases = {
        each.label: measuring.BenchmarkCase(
            each,
            collect.make_noise_pictures((each.size, each.size), 1, 1),
            plan.text,
            plan.tokens,
        )
        for each in subjects
    }
    told.begin_stage("measuring")
    told.announce_steps(measuring.count_measuring_steps(len(cases), MEASURING_ROUNDS))
    found = measuring.measure_cases(cases, MEASURING_ROUNDS, told.advance_steps)
    where["attention"] = ", ".join(sorted({each.attention for each in subjects}))
    return {"where": where, "rows": {key: make_measured_columns(each) for key, each in found.items()}}


def build_unfitted_subject(key: str, config: Config):
    """A cell's model without weights. A pruner that a calibration would fit drops as its budget says."""
    from experiments.efficiency.table1 import build_cell_subject

    subject = build_cell_subject(key, config)
    pruner = subject.model.pruner
    if pruner is not None and pruner.samples:
        knobs = {**config.knobs(config.prune), "recipe": pruner.known_shares()}
        subject.model.set_pruner(config.prune, **knobs)
    return subject


def make_measured_columns(found) -> dict[str, float]:
    """TTFT with its spread, and peak memory."""
    low, middle, high = (1e3 * getattr(found.ttft, name) for name in ("low", "median", "high"))
    return {
        "ttft_ms": round(middle, 3),
        "ttft_ms_low": round(low, 3),
        "ttft_ms_high": round(high, 3),
        "peak_memory_mib": round(found.peak_bytes / 2**20, 3),
    }


def describe_measurement(where: Mapping[str, Any]) -> str:
    """Where and how the columns were measured."""
    return (
        f"TTFT and peak memory: {where['device_name']}, {where['dtype']}, {where['threads']} threads, "
        f"attention {where['attention']}, torch {where['torch']}: one picture of the tower's size, "
        f"{where['text_tokens']} text tokens, from pixels to the first token; median of "
        f"{where['rounds']} rounds in which all rows took turns; random weights; memory of weights and "
        "activations."
    )
