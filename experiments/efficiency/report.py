"""Results with their definitions; as JSON, Markdown and pictures on disk."""

import json
from pathlib import Path
from typing import Any

from experiments.efficiency.collect import FILE
from experiments.efficiency.definitions import COUNTS, TIMES, TRAINING
from experiments.efficiency.tables import Words, counts_table, times_table, training_table
from experiments.runtime.files import write_atomic
from experiments.sweep.score_table import pipes

Result = dict[str, Any]
# name in a device's name -> dense bf16 FLOP/s, memory bytes/s: NVIDIA's data sheets
PEAKS = (
    ("H100 PCIe", 756e12, 2.0e12),
    ("H100", 989e12, 3.35e12),
    ("H200", 989e12, 4.8e12),
    ("A100", 312e12, 2.04e12),
    ("A800", 312e12, 2.04e12),
)


def title(result: Result) -> str:
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


def views(result: Result) -> list[tuple[str, Words, list[str]]]:
    """(title, table, notes) of all there is."""
    rows, made, found = result["rows"], result["made"], []
    flops, bandwidth = next(((f, b) for name, f, b in PEAKS if name in made["device_name"]), (None, None))
    if result["training"]:
        found.append(("Training steps", training_table(result["training"], flops), TRAINING))
    if rows:
        sources = {row["label"]: row["note"] for row in rows if row["note"]}
        named = [f"{label}: {note}." for label, note in sources.items()]
        told = f"Counted, {made['text_tokens']} text tokens, {made['dtype']}"
        found.append((told, counts_table(rows), COUNTS + named))
    if any(row["measured"] for row in rows):
        failed = [f"{row['label']} was not measured: {row['failed']}" for row in rows if row["failed"]]
        found.append(("Measured", times_table(rows, bandwidth), TIMES + list(dict.fromkeys(failed))))
    return found


def markdown(result: Result) -> str:
    """All tables with their definitions."""
    lines = ["# Efficiency", "", title(result), "", f"    {result['made']['command']}", ""]
    for heading, words, notes in views(result):
        lines += [f"## {heading}", "", *pipes(words), "", *(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def write(result: Result, folder: Path) -> list[Path]:
    """JSON, Markdown, pictures."""
    from experiments.efficiency import plots

    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, json.dumps(result, indent=1) + "\n")
    write_atomic(folder / "efficiency.md", markdown(result))
    written = [folder / FILE, folder / "efficiency.md"]
    for name, picture in plots.pictures(result["rows"], result["training"]).items():
        write_atomic(folder / f"{name}.svg", picture)
        written.append(folder / f"{name}.svg")
    return written
