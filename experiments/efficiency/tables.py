"""Results as tables of words, and what their columns mean, which is printed under each table."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from experiments.efficiency.collect import EfficiencyRow
from experiments.efficiency.row_numbers import (
    GIB,
    MIB,
    SHORT_PART_NAMES,
    Unit,
    choose_unit,
    find_common_reference,
    find_flops_rate,
    find_read_rate,
    find_reference_row,
    format_digits,
    format_ratio,
    format_spread,
    list_differing_keys,
    list_parts_of_rows,
    sum_flops,
    sum_parameters,
)

COUNT_NOTES = [
    "visual, query: tokens of a row, all its images together, beside the text tokens.",
    "FLOPs: of matrix products, attention and convolutions in a prefill of the whole batch; a "
    "multiply-add counts as two. LLM: all decoder layers over visual, query and text tokens, logits "
    "after the last one alone. A query module acts inside the LLM and is counted apart. Tower: with what a "
    "compressor asks it for, cues of the patches and the question by its text encoder. A token: a decoding "
    "step of one row.",
    "KV cache: keys and values after the prefill, and what layers of linear attention or state spaces "
    "keep in their place, whole batch. Weights: all parameters; of a model that sees no picture, the LLM's.",
]
TIME_NOTES = [
    "TTFT: from pictures in memory (PIL, RGB) to the first token on the host, through transformers' "
    "generate, for the whole batch: resizing and normalising on the CPU, the copy to the device, tower, "
    "compressor, projector, prefill, choice of the token. Token ids are made beforehand.",
    "tokens/s: decoding after the first token, all rows together, by generate; each token is copied to "
    "the host. Read: bytes of the LLM's weights (without an input embedding of its own) and of the KV "
    "cache, over the time of a step.",
    "By part: in a run of its own, in which every part is waited for. Other: placing tokens, copies, "
    "generate. A query module within a compiled layer counts as LLM.",
    "Peak memory: weights (as above) and the most that an answer holds beside them; on a GPU as the "
    "allocator counts, on a CPU tensors alone.",
    "Median of the rounds (lowest - highest), after one round that does not count. Rows of the same "
    "batch, images and picture take turns within a round; models of Table 1 run one after another. "
    "Weights are random: values do not change the time.",
]
TRAINING_NOTES = [
    "A step: an optimiser step of the sweep's own trainer, with the precision and checkpointing of the "
    "preset; copying its rows to the device included, reading and preparing data not.",
    "FLOPs of a step: forward times 3 for parts that are trained, 2 for a frozen LLM, 1 for a frozen "
    "tower, 0 for a tower whose features are cached; what checkpointing computes again does not count. "
    "Logits are of answer tokens alone, as the step computes them: 8 of 40 text tokens, 52 of 256.",
    "Hours: rows of the data / rows of a step x median seconds of a step / 3600, on one device. Rows have "
    "one image and the text tokens assumed: all are of one length.",
    "Peak memory: weights, gradients, AdamW's state, activations.",
]
TableWords = list[list[str]]  # header and rows


class Column(NamedTuple):
    """A column: its heading, and its word for a row."""

    heading: str
    format_row: Callable[[EfficiencyRow], str]


# ---- columns of several rows ----


def make_identity_columns(rows: Sequence[EfficiencyRow]) -> list[Column]:
    """The label, and what else tells rows apart."""
    columns = [Column("", partial(format_key, "label"))]
    for key in list_differing_keys(rows):
        columns.append(Column(key, partial(format_key, key)))
    return columns


def format_key(key: str, row: EfficiencyRow) -> str:
    """What a row has under a key, as it is."""
    return str(row[key])


def format_part_flops(part: str, unit: Unit, row: EfficiencyRow) -> str:
    """FLOPs of a part in the prefill; zero where a model has no such part."""
    return format_digits(row["counts"]["prefill"].get(part, 0) / unit.scale)


def format_flops_ratio(rows: Sequence[EfficiencyRow], row: EfficiencyRow) -> str:
    """FLOPs over those of the reference; nothing where there is none."""
    reference = find_reference_row(row, rows)
    if reference is None:
        return ""
    return format_ratio(sum_flops(row), sum_flops(reference))


def format_ttft(row: EfficiencyRow) -> str:
    """Milliseconds to the first token with their spread."""
    seconds = row["measured"]["ttft"]
    return format_spread([1e3 * value for value in seconds])


def format_ttft_ratio(rows: Sequence[EfficiencyRow], row: EfficiencyRow) -> str:
    """Time to the first token over the reference's; nothing where none was measured."""
    reference = find_reference_row(row, rows)
    if reference is None or not reference["measured"]:
        return ""
    return format_ratio(row["measured"]["ttft"][0], reference["measured"]["ttft"][0])


def format_part_milliseconds(part: str, row: EfficiencyRow) -> str:
    """Median milliseconds of a part on the way to the first token."""
    parts = row["measured"]["parts"]
    if part not in parts:  # the model has none
        return ""
    # the median alone: with all spreads the table would not fit a page
    median, _, _ = parts[part]
    return format_digits(1e3 * median)


def format_decoding_rate(row: EfficiencyRow) -> str:
    """Tokens a second, all rows of the batch; nothing for answers of one token."""
    decode = row["measured"]["decode"]
    if not decode:
        return ""
    median, _, _ = decode
    # a step gives every row of the batch a token
    return format_digits(row["batch"] / median)


def format_read_rate(row: EfficiencyRow) -> str:
    """The same in GB."""
    rate = find_read_rate(row)
    if rate is None:
        return ""
    return format_digits(rate / 1e9)


def format_read_share(peak: float, row: EfficiencyRow) -> str:
    """The same, of the device's `peak` bytes a second."""
    rate = find_read_rate(row)
    if rate is None:
        return ""
    return f"{rate / peak:.0%}"


# ---- columns of what is counted ----


def format_parameters(unit: Unit, row: EfficiencyRow) -> str:
    """Parameters of all parts."""
    return format_digits(sum_parameters(row) / unit.scale)


def format_all_flops(unit: Unit, row: EfficiencyRow) -> str:
    """FLOPs of all parts in the prefill."""
    return format_digits(sum_flops(row) / unit.scale)


def format_count(key: str, scale: float, row: EfficiencyRow) -> str:
    """What was counted under a key, over `scale`."""
    return format_digits(row["counts"][key] / scale)


# ---- columns of training ----


def format_flops_rate(row: EfficiencyRow) -> str:
    """TFLOP/s of a step."""
    return format_digits(find_flops_rate(row) / 1e12)


def format_flops_share(peak: float, row: EfficiencyRow) -> str:
    """The same, of the device's `peak` FLOP/s."""
    return f"{find_flops_rate(row) / peak:.0%}"


def format_stage(row: EfficiencyRow) -> str:
    """A stage, and whether its tower took part."""
    if row["cached"]:
        return f"{row['stage']} (cached features)"
    return row["stage"]


# ---- the tables ----


def fill_table(rows: Sequence[EfficiencyRow], columns: Sequence[Column]) -> TableWords:
    """Header and a line a row."""
    table = [[column.heading for column in columns]]
    for row in rows:
        table.append([column.format_row(row) for column in columns])
    return table


def make_counts_table(rows: Sequence[EfficiencyRow]) -> TableWords:
    """What is counted."""
    flops = choose_unit(max(map(sum_flops, rows)))
    parameters = choose_unit(max(map(sum_parameters, rows)))
    columns = make_identity_columns(rows)
    columns.append(Column("visual", lambda row: f"{row['counts']['visual']:,}"))
    columns.append(Column("query", lambda row: str(row["counts"]["query"])))
    columns.append(Column(f"{parameters.letter} param.", partial(format_parameters, parameters)))
    for part in list_parts_of_rows(rows, "counts", "prefill"):
        heading = f"{SHORT_PART_NAMES[part]} {flops.letter}FLOP"
        columns.append(Column(heading, partial(format_part_flops, part, flops)))
    columns.append(Column(f"all {flops.letter}FLOP", partial(format_all_flops, flops)))
    base = find_common_reference(rows)
    if base:
        columns.append(Column(f"x {base}", partial(format_flops_ratio, rows)))
    columns.append(Column("a token MFLOP", partial(format_count, "decode", 1e6)))
    columns.append(Column("KV cache MiB", partial(format_count, "cache_bytes", MIB)))
    columns.append(Column("weights GiB", partial(format_count, "weight_bytes", GIB)))
    return fill_table(rows, columns)


def make_times_table(rows: Sequence[EfficiencyRow], peak: float | None) -> TableWords:
    """What is measured; `peak`: the device's memory bytes a second. Rows that failed have no numbers."""
    columns = [Column("TTFT ms", format_ttft)]
    base = find_common_reference(rows)
    if base:
        columns.append(Column(f"x {base}", partial(format_ttft_ratio, rows)))
    for part in list_parts_of_rows(rows, "measured", "parts"):
        columns.append(Column(f"{SHORT_PART_NAMES[part]} ms", partial(format_part_milliseconds, part)))
    columns.append(Column("tokens/s", format_decoding_rate))
    columns.append(Column("read GB/s", format_read_rate))
    if peak:
        columns.append(Column("of peak", partial(format_read_share, peak)))
    columns.append(Column("peak GiB", lambda row: format_digits(row["measured"]["peak_bytes"] / GIB)))
    all_columns = make_identity_columns(rows)
    for column in columns:
        all_columns.append(Column(column.heading, partial(format_measured, column)))
    return fill_table(rows, all_columns)


def format_measured(column: Column, row: EfficiencyRow) -> str:
    """A column's word of a measured row, nothing for one that was not measured."""
    if not row["measured"]:
        return ""
    return column.format_row(row)


def make_training_table(rows: Sequence[EfficiencyRow], peak: float | None) -> TableWords:
    """Training steps; `peak`: the device's FLOP/s."""
    columns = [Column("", partial(format_key, "label")), Column("stage", format_stage)]
    for key in ("rows", "pieces", "tokens", "precision"):
        columns.append(Column(key, partial(format_key, key)))
    columns.append(Column("s a step", lambda row: format_spread(row["seconds"])))
    columns.append(Column("TFLOP/s", format_flops_rate))
    if peak:
        columns.append(Column("of peak", partial(format_flops_share, peak)))
    columns.append(Column("peak GiB", lambda row: format_digits(row["peak_bytes"] / GIB)))
    columns.append(Column("data rows", lambda row: f"{row['data_rows']:,}"))
    columns.append(Column("hours", lambda row: format_digits(row["hours"])))
    return fill_table(rows, columns)
