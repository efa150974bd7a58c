"""What a row of results comes to: sums, rates, the row that it is compared with, and the words of numbers."""

from collections.abc import Sequence
from typing import NamedTuple

from experiments.efficiency.collect import ANY_PICTURE, EfficiencyRow
from experiments.efficiency.measuring import PICTURE_PREPARATION
from experiments.efficiency.subject import COMPRESSOR, LLM, PROJECTOR, QUERY_PART, TOWER
from experiments.efficiency.timing import OTHER_PART

SHORT_PART_NAMES = {
    PICTURE_PREPARATION: "preparing",
    TOWER: "tower",
    COMPRESSOR: "compressor",
    PROJECTOR: "projector",
    QUERY_PART: "query module",
    LLM: "LLM",
    OTHER_PART: "other",
}


class Unit(NamedTuple):
    """What numbers are divided by, and its letter."""

    scale: float
    letter: str


MIB = 2**20
GIB = 2**30
UNITS = (Unit(1e12, "T"), Unit(1e9, "G"), Unit(1e6, "M"), Unit(1e3, "k"), Unit(1, ""))


def choose_unit(largest: float) -> Unit:
    """The largest unit that is no more than the largest number."""
    for unit in UNITS:
        if largest >= unit.scale:
            return unit
    return UNITS[-1]


# ---- words of numbers ----


def format_digits(value: float) -> str:
    """Three digits after the point for small numbers, fewer for large ones."""
    if value < 10:
        return f"{value:.3f}"
    if value < 1000:
        return f"{value:.1f}"
    return f"{value:,.0f}"


def format_ratio(value: float, base: float) -> str:
    """How many times the base."""
    return f"{value / base:.2f}x"


def format_spread(spread: Sequence[float]) -> str:
    """Median (lowest - highest), in the unit of the numbers."""
    middle, low, high = map(format_digits, spread)
    return f"{middle} ({low} - {high})"


# ---- what a table of these rows shows ----


def list_parts_of_rows(rows: Sequence[EfficiencyRow], where: str, inner: str) -> list[str]:
    """Parts that any row has something of, in order: in row[where][inner], numbers by part."""
    parts_with_values = set()
    for row in rows:
        if not row[where]:  # of a row that was not measured
            continue
        for part, value in row[where][inner].items():
            if value:
                parts_with_values.add(part)
    # in the order of a forward pass, whatever order the rows have them in
    return [part for part in SHORT_PART_NAMES if part in parts_with_values]


def list_differing_keys(rows: Sequence[EfficiencyRow]) -> list[str]:
    """What beside the label tells rows apart."""
    differing_keys = []
    for key in ("picture", "batch", "images"):
        first = rows[0][key]
        if any(row[key] != first for row in rows):
            differing_keys.append(key)
    return differing_keys


def find_reference_row(row: EfficiencyRow, rows: Sequence[EfficiencyRow]) -> EfficiencyRow | None:
    """The row that this one is compared with: of the same picture, or one that is of any."""
    candidates = []
    for candidate in rows:
        is_alike = all(candidate.get(key) == row.get(key) for key in ("batch", "images"))
        if candidate["label"] == row["reference"] and is_alike:
            candidates.append(candidate)
    for picture in (row["picture"], ANY_PICTURE):
        for candidate in candidates:
            if candidate["picture"] == picture:
                return candidate
    return None


def find_common_reference(rows: Sequence[EfficiencyRow]) -> str | None:
    """What all rows that are compared are compared with."""
    references = set()
    for row in rows:
        if find_reference_row(row, rows) is not None:
            references.add(row["reference"])
    if len(references) != 1:  # ratios of different references in one column would mislead
        return None
    return references.pop()


def sum_flops(row: EfficiencyRow) -> int:
    """FLOPs of the prefill, all parts."""
    return sum(row["counts"]["prefill"].values())


def sum_parameters(row: EfficiencyRow) -> int:
    """Parameters of all parts."""
    return sum(row["counts"]["parameters"].values())


def find_read_rate(row: EfficiencyRow) -> float | None:
    """Bytes that decoding reads a second; None for answers of one token."""
    decode = row["measured"]["decode"]
    if not decode:
        return None
    median, _, _ = decode
    # a step reads the weights once, whatever the batch
    return row["counts"]["llm_bytes"] / median


def find_flops_rate(row: EfficiencyRow) -> float:
    """FLOP/s of a training step."""
    median, _, _ = row["seconds"]
    return row["flops"] / median
