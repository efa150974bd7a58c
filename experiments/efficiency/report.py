"""Results with their definitions; as JSON, Markdown and pictures on disk."""

import json
from pathlib import Path
from typing import Any

from experiments.efficiency.collect import RESULT_FILE
from experiments.efficiency.definitions import COUNT_NOTES, TIME_NOTES, TRAINING_NOTES
from experiments.efficiency.tables import TableWords, make_counts_table, make_times_table, make_training_table
from experiments.runtime.files import write_atomic
from experiments.runtime.text_tables import format_markdown_table

EfficiencyResult = dict[str, Any]
# name in a device's name -> dense bf16 FLOP/s, memory bytes/s: NVIDIA's data sheets
DEVICE_PEAKS = (
    ("H100 PCIe", 756e12, 2.0e12),
    ("H100", 989e12, 3.35e12),
    ("H200", 989e12, 4.8e12),
    ("A100", 312e12, 2.04e12),
    ("A800", 312e12, 2.04e12),
)


def describe_result(result: EfficiencyResult) -> str:
    """Where and how."""
    made = result["made"]
    words = [made["device_name"], f"{made['threads']} threads"]
    if result["rows"]:  # trained cells have their own of these
        words += [
            f"attention {', '.join(sorted({row['attention'] for row in result['rows']}))}",
            made["dtype"],
            f"{made['text_tokens']} text tokens",
            f"answers of {made['new_tokens']}",
            "static cache" if made["static_cache"] else "dynamic cache",
        ]
    words += [
        f"{made['rounds']} rounds",
        f"torch {made['torch']}",
        f"transformers {made['transformers']}",
        f"python {made['python']}",
    ]
    return ", ".join([*words, *([f"CUDA {made['cuda']}"] if made["cuda"] else [])])


def make_result_views(result: EfficiencyResult) -> list[tuple[str, TableWords, list[str]]]:
    """(title, table, notes) of all there is."""
    rows, made, found = result["rows"], result["made"], []
    flops, bandwidth = next(
        ((f, b) for name, f, b in DEVICE_PEAKS if name in made["device_name"]), (None, None)
    )
    if result["training"]:
        found.append(("Training steps", make_training_table(result["training"], flops), TRAINING_NOTES))
    if rows:
        sources = {row["label"]: row["note"] for row in rows if row["note"]}
        named = [f"{label}: {note}." for label, note in sources.items()]
        told = f"Counted, {made['text_tokens']} text tokens, {made['dtype']}"
        found.append((told, make_counts_table(rows), COUNT_NOTES + named))
    if any(row["measured"] for row in rows):
        failed = [f"{row['label']} was not measured: {row['failed']}" for row in rows if row["failed"]]
        found.append(
            ("Measured", make_times_table(rows, bandwidth), TIME_NOTES + list(dict.fromkeys(failed)))
        )
    return found


def format_result_markdown(result: EfficiencyResult) -> str:
    """All tables with their definitions."""
    lines = ["# Efficiency", "", describe_result(result), "", f"    {result['made']['command']}", ""]
    for heading, words, notes in make_result_views(result):
        lines += [
            f"## {heading}",
            "",
            *format_markdown_table(words),
            "",
            *(f"- {note}" for note in notes),
            "",
        ]
    return "\n".join(lines)


def write_result(result: EfficiencyResult, folder: Path) -> list[Path]:
    """JSON, Markdown, pictures."""
    from experiments.efficiency import plots

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / RESULT_FILE, json.dumps(result, indent=1) + "\n")
    write_atomic(folder / "efficiency.md", format_result_markdown(result))
    written = [folder / RESULT_FILE, folder / "efficiency.md"]
    for name, picture in plots.draw_result_pictures(result["rows"], result["training"]).items():
        write_atomic(folder / f"{name}.svg", picture)
        written.append(folder / f"{name}.svg")
    return written
