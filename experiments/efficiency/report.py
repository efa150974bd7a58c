"""Results with their definitions; as JSON, Markdown and pictures on disk."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.efficiency.collect import RESULT_FILE, EfficiencyRow
from experiments.efficiency.tables import (
    COUNT_NOTES,
    TIME_NOTES,
    TRAINING_NOTES,
    TableWords,
    make_counts_table,
    make_times_table,
    make_training_table,
)
from experiments.runtime.files import write_atomic
from experiments.runtime.text_tables import format_markdown_table

# made (the command and the conditions), rows of models that answer, training steps
EfficiencyResult = dict[str, Any]


class DevicePeak(NamedTuple):
    """What a device can do at most: dense bf16 FLOP/s, memory bytes/s. `name`: within torch's name for it."""

    name: str
    flops: float
    bandwidth: float


# NVIDIA's data sheets; the first that fits counts
DEVICE_PEAKS = (
    DevicePeak("H100 PCIe", 756e12, 2.0e12),
    DevicePeak("H100 NVL", 835e12, 3.9e12),
    DevicePeak("H100", 989e12, 3.35e12),
    DevicePeak("H200", 989e12, 4.8e12),
    DevicePeak("A100-SXM4-40GB", 312e12, 1.555e12),
    DevicePeak("A100-PCIE-40GB", 312e12, 1.555e12),
    DevicePeak("A100 80GB PCIe", 312e12, 1.935e12),
    DevicePeak("A100", 312e12, 2.04e12),
    DevicePeak("A800", 312e12, 2.04e12),
)


class ResultView(NamedTuple):
    """A table with its title and the definitions of its columns."""

    title: str
    table: TableWords
    notes: list[str]


def describe_result(result: EfficiencyResult) -> str:
    """Where and how."""
    conditions = result["made"]
    words = [conditions["device_name"], f"{conditions['threads']} threads"]
    if result["rows"]:  # trained cells have their own of these
        attentions = sorted({row["attention"] for row in result["rows"]})
        words.append(f"attention {', '.join(attentions)}")
        words.append(conditions["dtype"])
        words.append(f"{conditions['text_tokens']} text tokens")
        words.append(f"answers of {conditions['new_tokens']}")
        cache = "static" if conditions["static_cache"] else "dynamic"
        words.append(f"{cache} cache")
        if conditions.get("compiled"):  # files of before have no word on it
            words.append("layers compiled")
    words.append(f"{conditions['rounds']} rounds")
    for package in ("torch", "transformers", "python"):
        words.append(f"{package} {conditions[package]}")
    if conditions["cuda"]:
        words.append(f"CUDA {conditions['cuda']}")
    return ", ".join(words)


def find_device_peak(device_name: str) -> DevicePeak | None:
    """What the device can do at most, if we know it; of a part of a GPU (MIG) we do not."""
    if "MIG" in device_name:
        return None
    # in their order: "H100" is part of "H100 PCIe"; whole words, as GH200 is no H200
    for peak in DEVICE_PEAKS:
        if re.search(rf"\b{peak.name}\b", device_name):
            return peak
    return None


def make_result_views(result: EfficiencyResult) -> list[ResultView]:
    """All there is: training steps, counts, times."""
    rows = result["rows"]
    conditions = result["made"]
    peak = find_device_peak(conditions["device_name"])
    views = []
    if result["training"]:
        table = make_training_table(result["training"], peak.flops if peak else None)
        views.append(ResultView("Training steps", table, TRAINING_NOTES))
    if rows:
        title = f"Counted, {conditions['text_tokens']} text tokens, {conditions['dtype']}"
        views.append(ResultView(title, make_counts_table(rows), COUNT_NOTES + list_sources(rows)))
    if any(row["measured"] for row in rows):
        table = make_times_table(rows, peak.bandwidth if peak else None)
        views.append(ResultView("Measured", table, TIME_NOTES + list_failures(rows)))
    return views


def list_sources(rows: Sequence[EfficiencyRow]) -> list[str]:
    """What the models were built from, a sentence each. Cells of one's own have no such note."""
    notes = {}  # by label: a model has a row for each case
    for row in rows:
        if row["note"]:
            notes[row["label"]] = f"{row['label']}: {row['note']}."
    return list(notes.values())


def list_failures(rows: Sequence[EfficiencyRow]) -> list[str]:
    """Why models were not measured. A model has a row for each size of picture, but one reason."""
    reasons: dict[str, None] = {}  # a dict keeps the order and each sentence once
    for row in rows:
        if row["failed"]:
            reasons[f"{row['label']} was not measured: {row['failed']}"] = None
    return list(reasons)


def format_result_markdown(result: EfficiencyResult) -> str:
    """All tables with their definitions."""
    lines = ["# Efficiency", "", describe_result(result), "", f"    {result['made']['command']}", ""]
    for title, table, notes in make_result_views(result):
        lines += [f"## {title}", "", *format_markdown_table(table), ""]
        for note in notes:
            lines.append(f"- {note}")
        lines.append("")
    return "\n".join(lines)


def write_result(result: EfficiencyResult, folder: Path) -> list[Path]:
    """JSON, Markdown, pictures; the files that were written."""
    from experiments.efficiency import plots  # matplotlib: a result that is only shown does not wait for it

    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        RESULT_FILE: json.dumps(result, indent=1) + "\n",
        "efficiency.md": format_result_markdown(result),
    }
    for name, svg in plots.draw_result_pictures(result["rows"], result["training"]).items():
        contents[f"{name}.svg"] = svg
    written = []
    for file_name, content in contents.items():
        write_atomic(folder / file_name, content)
        written.append(folder / file_name)
    return written
