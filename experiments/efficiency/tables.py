"""Results as tables of words."""

from collections.abc import Sequence

from experiments.efficiency.collect import EfficiencyRow
from experiments.efficiency.measuring import PICTURE_PREPARATION
from experiments.efficiency.subject import COMPRESSOR, LLM, PROJECTOR, QUERY_PART, TOWER
from experiments.efficiency.timing import OTHER_PART

TableWords = list[list[str]]
SHORT_PART_NAMES = {
    PICTURE_PREPARATION: "preparing",
    TOWER: "tower",
    COMPRESSOR: "compressor",
    PROJECTOR: "projector",
    QUERY_PART: "EmbQ",
    LLM: "LLM",
    OTHER_PART: "other",
}
UNIT_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def choose_unit(largest: float) -> tuple[float, str]:
    """What to divide by, and its letter."""
    return next((each for each in UNIT_PREFIXES if largest >= each[0]), UNIT_PREFIXES[-1])


def format_digits(value: float) -> str:
    """Three of them after the point for small numbers, fewer for large ones."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def list_parts_of_rows(rows: Sequence[EfficiencyRow], where: str, inner: str) -> list[str]:
    """Parts that any row has something of, in order."""
    there = {part for row in rows if row[where] for part, value in row[where][inner].items() if value}
    return [part for part in SHORT_PART_NAMES if part in there]


def list_differing_keys(rows: Sequence[EfficiencyRow]) -> list[str]:
    """What beside the label tells rows apart."""
    return [key for key in ("picture", "batch", "images") if len({row[key] for row in rows}) > 1]


def find_reference_row(row: EfficiencyRow, rows: Sequence[EfficiencyRow]) -> EfficiencyRow | None:
    """The row that this one is compared with."""
    same = ("batch", "images") if row["label"] != row["reference"] else ("batch", "images", "picture")
    return next(
        (
            other
            for other in rows
            if other["label"] == row["reference"] and all(other[key] == row[key] for key in same)
        ),
        None,
    )


def find_common_reference(rows: Sequence[EfficiencyRow]) -> str | None:
    """What all rows that are compared are compared with."""
    found = {row["reference"] for row in rows if find_reference_row(row, rows)}
    return found.pop() if len(found) == 1 else None


def format_ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}x"


def make_counts_table(rows: Sequence[EfficiencyRow]) -> TableWords:
    """What is counted."""
    parts, told, base = (
        list_parts_of_rows(rows, "counts", "prefill"),
        list_differing_keys(rows),
        find_common_reference(rows),
    )
    scale, letter = choose_unit(max(sum(row["counts"]["prefill"].values()) for row in rows))
    size, sized = choose_unit(max(sum(row["counts"]["parameters"].values()) for row in rows))
    found = [
        [
            "",
            *told,
            "visual",
            "query",
            f"{sized} param.",
            *(f"{SHORT_PART_NAMES[p]} {letter}FLOP" for p in parts),
            f"all {letter}FLOP",
            *([f"x {base}"] if base else []),
            "a token MFLOP",
            "KV cache MiB",
            "weights GiB",
        ]
    ]
    for row in rows:
        c, other = row["counts"], find_reference_row(row, rows)
        total = sum(c["prefill"].values())
        ratio = format_ratio(total, sum(other["counts"]["prefill"].values())) if other else ""
        found.append(
            [
                row["label"],
                *(str(row[key]) for key in told),
                f"{c['visual']:,}",
                str(c["query"]),
                format_digits(sum(c["parameters"].values()) / size),
                *(format_digits(c["prefill"].get(p, 0) / scale) for p in parts),
                format_digits(total / scale),
                *([ratio] if base else []),
                format_digits(c["decode"] / 1e6),
                format_digits(c["cache_bytes"] / 2**20),
                format_digits(c["weight_bytes"] / 2**30),
            ]
        )
    return found


def format_milliseconds(spread: Sequence[float]) -> str:
    """Milliseconds: median (lowest - highest)."""
    middle, low, high = (format_digits(1e3 * value) for value in spread)
    return f"{middle} ({low} - {high})"


def make_times_table(rows: Sequence[EfficiencyRow], peak: float | None) -> TableWords:
    """What is measured; `peak`: the device's memory bytes a second."""
    parts, told, base = (
        list_parts_of_rows(rows, "measured", "parts"),
        list_differing_keys(rows),
        find_common_reference(rows),
    )
    found = [
        [
            "",
            *told,
            "TTFT ms",
            *([f"x {base}"] if base else []),
            *(f"{SHORT_PART_NAMES[p]} ms" for p in parts),
            "tokens/s",
            "read GB/s",
            *(["of peak"] if peak else []),
            "peak GiB",
        ]
    ]
    for row in rows:
        m, other = row["measured"], find_reference_row(row, rows)
        if not m:
            found.append(
                [row["label"], *(str(row[key]) for key in told), *[""] * (len(found[0]) - len(told) - 1)]
            )
            continue
        there = other and other["measured"]
        rate = row["counts"]["llm_bytes"] / m["decode"][0] if m["decode"] else None
        found.append(
            [
                row["label"],
                *(str(row[key]) for key in told),
                format_milliseconds(m["ttft"]),
                *([format_ratio(m["ttft"][0], there["ttft"][0]) if there else ""] if base else []),
                *(format_digits(1e3 * m["parts"][p][0]) if p in m["parts"] else "" for p in parts),
                format_digits(row["batch"] / m["decode"][0]) if rate else "",
                format_digits(rate / 1e9) if rate else "",
                *([f"{rate / peak:.0%}" if rate else ""] if peak else []),
                format_digits(m["peak_bytes"] / 2**30),
            ]
        )
    return found


def make_training_table(rows: Sequence[EfficiencyRow], peak: float | None) -> TableWords:
    """Training steps; `peak`: the device's FLOP/s."""
    found = [
        [
            "",
            "stage",
            "rows",
            "pieces",
            "tokens",
            "precision",
            "s a step",
            "TFLOP/s",
            *(["of peak"] if peak else []),
            "peak GiB",
            "data rows",
            "hours",
        ]
    ]
    for row in rows:
        seconds, low, high = row["seconds"]
        rate = row["flops"] / seconds
        found.append(
            [
                row["label"],
                row["stage"] + (" (cached features)" if row["cached"] else ""),
                str(row["rows"]),
                str(row["pieces"]),
                str(row["tokens"]),
                row["precision"],
                f"{format_digits(seconds)} ({format_digits(low)} - {format_digits(high)})",
                format_digits(rate / 1e12),
                *([f"{rate / peak:.0%}"] if peak else []),
                format_digits(row["peak_bytes"] / 2**30),
                f"{row['data_rows']:,}",
                format_digits(row["hours"]),
            ]
        )
    return found
