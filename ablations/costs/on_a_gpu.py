"""What a GPU was measured for, from the parts of `ablations/results/efficiency/on_a_gpu.sh`:

    python -m ablations.costs.on_a_gpu FOLDER

Figures beside their aims, each with its definition; a part that is not in the folder yet is named.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.reading import read_json_file
from experiments.runtime.text_tables import format_markdown_table

RESULT = "efficiency.json"  # of a part, as `experiments.efficiency` writes it
COMPRESSED, UNCOMPRESSED = "sap+embq", "identity"
PartResult = dict[str, Any]


@dataclass(frozen=True)
class FigureOptions:
    """None."""


COMMAND = Command(
    usage="python -m ablations.costs.on_a_gpu FOLDER",
    description=__doc__,
    options=FigureOptions,
    words=(1, 1),
)


class Figure(NamedTuple):
    """One of the figures.

    name        as the table has it
    parts       the folders that have what it is computed from
    aim         what is to be reached, at least
    unit        `x`, or `%` for a share
    compute     from the parts' results, in their order; None: of a device whose limits are not known
    definition  how
    """

    name: str
    parts: tuple[str, ...]
    aim: float
    unit: str
    compute: Callable[..., float | None]
    definition: str


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(show_figures, arguments)


def show_figures(line: CommandLine) -> int:
    """The command, with its exceptions."""
    folder = Path(line.words[0])
    results = read_parts(folder)
    lines = format_figures(results)
    Console().print(*lines, sep="\n", markup=False, highlight=False, soft_wrap=True)
    return 0


def read_parts(folder: Path) -> dict[str, PartResult]:
    """The results in the folders of `folder` by part. UsageError where there is none, or two machines'."""
    results = {}
    for path in sorted(folder.glob(f"*/{RESULT}")):
        results[path.parent.name] = read_json_file(path)
    if not results:
        raise UsageError(f"{folder}: has no */{RESULT}; run ablations/results/efficiency/on_a_gpu.sh first")
    devices = {result["made"]["device_name"] for result in results.values()}
    if len(devices) > 1:
        raise UsageError(
            f"{folder}: parts of {', '.join(sorted(devices))}; give each device a folder of its own"
        )
    return results


def format_figures(results: dict[str, PartResult]) -> list[str]:
    """Lines of Markdown: where it was measured, a table of the figures, their definitions."""
    provenance = next(iter(results.values()))["made"]  # all parts are of one device
    table = [["", "measured", "aim", "part"]]
    definitions = []
    for figure in FIGURES:
        value = format_value(figure, results)
        aim = format_number(figure.aim, figure.unit)
        table.append([figure.name, value, aim, ", ".join(figure.parts)])
        definitions.append(f"- {figure.name}: {figure.definition}")
    versions = f"torch {provenance['torch']}, transformers {provenance['transformers']}"
    heading = f"{provenance['device_name']}, {versions}, {provenance['dtype']}"
    heading = "; ".join([heading, *describe_models(results)])
    return [heading, "", *format_markdown_table(table), "", *definitions]


def describe_models(results: dict[str, PartResult]) -> list[str]:
    """Tokens of the models that are compared, which are others in a trial at QUICK=1."""
    counts_by_label: dict[str, dict[str, Any]] = {}
    for result in results.values():
        for row in result["rows"]:
            counts_by_label[row["label"]] = row["counts"]
    descriptions = []
    for label in (COMPRESSED, UNCOMPRESSED):
        if label in counts_by_label:
            counts = counts_by_label[label]
            tokens = f"{counts['visual']} visual, {counts['query']} query, {counts['text']} text tokens"
            descriptions.append(f"{label}: {tokens}")
    return descriptions


def format_value(figure: Figure, results: dict[str, PartResult]) -> str:
    """What was measured, or why there is no number."""
    if not set(figure.parts) <= results.keys():
        return "part not run"
    value = figure.compute(*[results[part] for part in figure.parts])
    if value is None:
        return "device's limit unknown"
    return format_number(value, figure.unit)


def format_number(value: float, unit: str) -> str:
    """2.51x or 43 %."""
    if unit == "x":
        return f"{value:.2f}x"
    return f"{100 * value:.0f} %"


# ---- what each figure is computed from ----


def find_row(rows: Sequence[dict[str, Any]], part: str, **values: object) -> dict[str, Any]:
    """The row that has these values; UsageError where there is none."""
    for row in rows:
        if all(row[key] == value for key, value in values.items()):
            return row
    description = ", ".join(f"{key} {value}" for key, value in values.items())
    raise UsageError(f"{part}/{RESULT}: no row of {description}; delete the folder and run the part again")


def compare_first_tokens(batch: int, part: str, result: PartResult) -> float:
    """How many times sooner the first token comes with compression."""
    compressed = find_row(result["rows"], part, label=COMPRESSED, batch=batch)
    uncompressed = find_row(result["rows"], part, label=UNCOMPRESSED, batch=batch)
    return float(uncompressed["measured"]["ttft"][0] / compressed["measured"]["ttft"][0])


def find_training_share(result: PartResult) -> float | None:
    """FLOP/s of a step of stage 2 over the device's."""
    from experiments.efficiency.report import find_device_peak  # torch: --help does not wait for it
    from experiments.efficiency.row_numbers import find_flops_rate

    peak = find_device_peak(result["made"]["device_name"])
    if peak is None:
        return None
    row = find_row(result["training"], "training_flashsloth", label=COMPRESSED, stage="finetune")
    return find_flops_rate(row) / peak.flops


def find_decoding_share(result: PartResult) -> float | None:
    """Bytes a second that decoding reads over the device's."""
    from experiments.efficiency.report import find_device_peak  # as above
    from experiments.efficiency.row_numbers import find_read_rate

    peak = find_device_peak(result["made"]["device_name"])
    row = find_row(result["rows"], "decoding", label=COMPRESSED, batch=1)
    rate = find_read_rate(row)
    if peak is None or rate is None:
        return None
    return rate / peak.bandwidth


def compare_caches(static: PartResult, dynamic: PartResult) -> float:
    """How many times sooner a token comes with a cache of fixed size."""
    static_row = find_row(static["rows"], "decoding", label=COMPRESSED, batch=1)
    dynamic_row = find_row(dynamic["rows"], "decoding_dynamic", label=COMPRESSED, batch=1)
    return float(dynamic_row["measured"]["decode"][0] / static_row["measured"]["decode"][0])


def compare_at_eight(result: PartResult) -> float:
    """At batch 8."""
    return compare_first_tokens(8, "answers", result)


def compare_compiled(result: PartResult) -> float:
    """At batch 1, compiled."""
    return compare_first_tokens(1, "answers_compiled", result)


TTFT_DEFINITION = (
    "median time from pictures in memory to the first token on the host of the uncompressed model (identity) "
    "over FlashSloth's (sap+embq), which take turns in one process"
)
TRAINING_DEFINITION = (
    "FLOPs of an optimiser step (forward times 3 for what is trained, 2 for a frozen LLM, 1 for a frozen "
    "tower; logits of answer tokens alone; what checkpointing computes again does not count) over its median "
    "time, of the dense bf16 peak of the data sheet."
)
DECODING_DEFINITION = (
    "bytes of the LLM's weights (without an input embedding of its own) and of the KV cache after the "
    "prefill, over the median time of a step after the first token, of the memory bandwidth of the data "
    "sheet; a cache of fixed size, with which transformers compiles the step."
)
CACHE_DEFINITION = (
    "median time of a step after the first token with a cache that grows over that with one of fixed size, "
    "with which transformers compiles the step; FlashSloth, in two runs."
)
COMPILED_DEFINITION = f"{TTFT_DEFINITION}; the layers of tower and LLM compiled."
FIGURES = (
    Figure(
        "TTFT, batch 8", ("answers",), 3.3, "x", compare_at_eight, f"{TTFT_DEFINITION}; nothing compiled."
    ),
    Figure("TTFT, batch 1, compiled", ("answers_compiled",), 3.3, "x", compare_compiled, COMPILED_DEFINITION),
    Figure("training, stage 2", ("training_flashsloth",), 0.4, "%", find_training_share, TRAINING_DEFINITION),
    Figure("decoding, batch 1", ("decoding",), 0.6, "%", find_decoding_share, DECODING_DEFINITION),
    Figure(
        "decoding, static over dynamic cache",
        ("decoding", "decoding_dynamic"),
        1.0,
        "x",
        compare_caches,
        CACHE_DEFINITION,
    ),
)


if __name__ == "__main__":
    sys.exit(main())
