"""Results as tables of words."""

from collections.abc import Sequence

from experiments.efficiency.collect import Row
from experiments.efficiency.measuring import PREPARING
from experiments.efficiency.subject import COMPRESSOR, LLM, PROJECTOR, QUERIES, TOWER
from experiments.efficiency.timing import OTHER

Words = list[list[str]]
SHORT = {
    PREPARING: "preparing",
    TOWER: "tower",
    COMPRESSOR: "compressor",
    PROJECTOR: "projector",
    QUERIES: "EmbQ",
    LLM: "LLM",
    OTHER: "other",
}
UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def unit(largest: float) -> tuple[float, str]:
    """What to divide by, and its letter."""
    return next((each for each in UNITS if largest >= each[0]), UNITS[-1])


def digits(value: float) -> str:
    """Three of them after the point for small numbers, fewer for large ones."""
    return f"{value:.3f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def parts_of(rows: Sequence[Row], where: str, inner: str) -> list[str]:
    """Parts that any row has something of, in order."""
    there = {part for row in rows if row[where] for part, value in row[where][inner].items() if value}
    return [part for part in SHORT if part in there]


def keys(rows: Sequence[Row]) -> list[str]:
    """What beside the label tells rows apart."""
    return [key for key in ("picture", "batch", "images") if len({row[key] for row in rows}) > 1]


def reference(row: Row, rows: Sequence[Row]) -> Row | None:
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


def compared(rows: Sequence[Row]) -> str | None:
    """What all rows that are compared are compared with."""
    found = {row["reference"] for row in rows if reference(row, rows)}
    return found.pop() if len(found) == 1 else None


def times(value: float, base: float) -> str:
    return f"{value / base:.2f}x"


def counts_table(rows: Sequence[Row]) -> Words:
    """What is counted."""
    parts, told, base = parts_of(rows, "counts", "prefill"), keys(rows), compared(rows)
    scale, letter = unit(max(sum(row["counts"]["prefill"].values()) for row in rows))
    size, sized = unit(max(sum(row["counts"]["parameters"].values()) for row in rows))
    found = [
        [
            "",
            *told,
            "visual",
            "query",
            f"{sized} param.",
            *(f"{SHORT[p]} {letter}FLOP" for p in parts),
            f"all {letter}FLOP",
            *([f"x {base}"] if base else []),
            "a token MFLOP",
            "KV cache MiB",
            "weights GiB",
        ]
    ]
    for row in rows:
        c, other = row["counts"], reference(row, rows)
        total = sum(c["prefill"].values())
        ratio = times(total, sum(other["counts"]["prefill"].values())) if other else ""
        found.append(
            [
                row["label"],
                *(str(row[key]) for key in told),
                f"{c['visual']:,}",
                str(c["query"]),
                digits(sum(c["parameters"].values()) / size),
                *(digits(c["prefill"].get(p, 0) / scale) for p in parts),
                digits(total / scale),
                *([ratio] if base else []),
                digits(c["decode"] / 1e6),
                digits(c["cache_bytes"] / 2**20),
                digits(c["weight_bytes"] / 2**30),
            ]
        )
    return found


def ms(spread: Sequence[float]) -> str:
    """Milliseconds: median (lowest - highest)."""
    middle, low, high = (digits(1e3 * value) for value in spread)
    return f"{middle} ({low} - {high})"


def times_table(rows: Sequence[Row], peak: float | None) -> Words:
    """What is measured; `peak`: the device's memory bytes a second."""
    parts, told, base = parts_of(rows, "measured", "parts"), keys(rows), compared(rows)
    found = [
        [
            "",
            *told,
            "TTFT ms",
            *([f"x {base}"] if base else []),
            *(f"{SHORT[p]} ms" for p in parts),
            "tokens/s",
            "read GB/s",
            *(["of peak"] if peak else []),
            "peak GiB",
        ]
    ]
    for row in rows:
        m, other = row["measured"], reference(row, rows)
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
                ms(m["ttft"]),
                *([times(m["ttft"][0], there["ttft"][0]) if there else ""] if base else []),
                *(digits(1e3 * m["parts"][p][0]) if p in m["parts"] else "" for p in parts),
                digits(row["batch"] / m["decode"][0]) if rate else "",
                digits(rate / 1e9) if rate else "",
                *([f"{rate / peak:.0%}" if rate else ""] if peak else []),
                digits(m["peak_bytes"] / 2**30),
            ]
        )
    return found


def training_table(rows: Sequence[Row], peak: float | None) -> Words:
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
                f"{digits(seconds)} ({digits(low)} - {digits(high)})",
                digits(rate / 1e12),
                *([f"{rate / peak:.0%}"] if peak else []),
                digits(row["peak_bytes"] / 2**30),
                f"{row['data_rows']:,}",
                digits(row["hours"]),
            ]
        )
    return found
