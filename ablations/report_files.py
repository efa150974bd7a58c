"""A report's files, written, and read again.

report.json               rows, claims, efficiency, versions: all but the outcomes
plots/attention-1.png     attention maps, which need the trained model
outcomes/table3.npz       ids, pictures and families (Q,) of the questions; right (cells, Q / 8), bits
                          packed, rows in order and within a row its seeds; scores (cells, Q) in its
                          place where a metric gives more than right and wrong; report.json has its digest
"""

import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
from numpy.typing import NDArray

from ablations.claims.gains import Gain, GainSum
from ablations.claims.spec import Claim
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.study import REPORT_FILE, explain_report_errors, read_report_content
from compressors.errors import UsageError
from compressors.reading import read_binary_file
from compressors.registry import conform
from experiments.config.table_files import check_table_name
from experiments.runtime.files import write_atomic

REPORT_FORMAT = 2  # counted up when an older version could not read what is written
OUTCOMES_FOLDER = "outcomes"
PLOTS_FOLDER = "plots"
REFERENCES = ("baseline", "uncompressed")  # rows that a row is compared with
DIGEST = "outcomes_sha256"  # in a table's entry: of its file of outcomes


def save_report(report: Report, folder: Path) -> None:
    """Write what the report can be made from again."""
    (folder / OUTCOMES_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / PLOTS_FOLDER).mkdir(exist_ok=True)
    entries = []
    for table in report.tables:
        packed = pack_outcomes(table)
        write_atomic(locate_outcomes(folder, table.name), packed)
        entries.append({**make_table_entry(table), DIGEST: digest_bytes(packed)})
    for number, image in enumerate(report.maps, 1):
        write_atomic(locate_map(folder, number), image)
    content = {
        "format": REPORT_FORMAT,
        "made": report.provenance,
        "maps": len(report.maps),
        "tables": entries,
    }
    # last: whoever finds this file finds the others
    write_atomic(folder / REPORT_FILE, json.dumps(content, indent=1) + "\n")


def pack_outcomes(table: ReportTable) -> bytes:
    """A table's questions and outcomes as an .npz file: an eighth of a byte for each answer, eight bytes for
    each score."""
    cells: list[NDArray] = []
    for row in table.rows:
        cells += row.outcomes.values()
    file = io.BytesIO()
    words = (table.ids, table.pictures, table.families)
    if any(cell.dtype != np.bool_ for cell in cells):
        scores = np.stack(cells).astype(np.float64)  # (cells, Q)
        np.savez_compressed(file, ids=words[0], pictures=words[1], families=words[2], scores=scores)
        return file.getvalue()
    packed = np.zeros((0, 0), np.uint8)
    if cells:
        packed = np.packbits(np.stack(cells), axis=1)  # (cells, Q / 8)
    np.savez_compressed(file, ids=words[0], pictures=words[1], families=words[2], right=packed)
    return file.getvalue()


def make_table_entry(table: ReportTable) -> dict[str, Any]:
    """A table without its outcomes, for JSON."""
    rows = []
    for row in table.rows:
        row_entry = {
            "block": row.block,
            "label": row.label,
            "ours": row.ours,
            "seeds": list(row.outcomes),
            "keys": [row.keys.get(seed) for seed in row.outcomes],
            "training": row.training,
            "missing": row.missing,
            "efficiency": row.efficiency,
        }
        # only of tables whose rows are compared, or of rows that cannot be
        for name in ("settings", *REFERENCES, "absent"):
            if getattr(row, name):
                row_entry[name] = getattr(row, name)
        rows.append(row_entry)
    entry = {
        "name": table.name,
        "heading": table.heading,
        "title": table.title,
        "chance": table.chance,
        "rows": rows,
        "sweep": table.sweep,
        "claims": [dataclasses.asdict(claim) for claim in table.claims],
    }
    if table.baseline:
        entry["baseline"] = table.baseline
    if table.left_out:
        entry["left_out"] = table.left_out
    return entry


def locate_outcomes(folder: Path, name: str) -> Path:
    """The file of a table's outcomes."""
    return folder / OUTCOMES_FOLDER / f"table{name}.npz"


def locate_map(folder: Path, number: int) -> Path:
    """The file of an attention map, counted from 1."""
    return folder / PLOTS_FOLDER / f"attention-{number}.png"


def load_report(folder: Path, option: str = "results") -> Report:
    """A report from what `save_report` wrote, or a UsageError that names the file and the option that gave
    the folder."""
    with explain_report_errors(folder, option):
        content = read_report_content(folder, option)
        if content["format"] != REPORT_FORMAT:
            path = folder / REPORT_FILE
            raise UsageError(f"{path}: format {content['format']!r:.20}, this version reads {REPORT_FORMAT}")
        maps = []
        for number in range(1, content.get("maps", 0) + 1):
            maps.append(read_binary_file(locate_map(folder, number)))
        tables = []
        for entry in content["tables"]:
            tables.append(load_report_table(entry, folder))
        return Report(tables, conform(content["made"], dict[str, Any], "made"), maps)


def load_report_table(entry: Mapping[str, Any], folder: Path) -> ReportTable:
    """One table with its outcomes; UsageError where their file is not the one it was written with."""
    words = {name: conform(entry[name], str, name) for name in ("name", "heading", "title", "sweep")}
    check_table_name(words["name"])
    path = locate_outcomes(folder, words["name"])
    packed = read_binary_file(path)
    digest = conform(entry.get(DIGEST), str | None, DIGEST)  # earlier versions did not write it down
    if digest is not None and digest_bytes(packed) != digest:
        raise UsageError(
            f"{path}: is damaged or of another report, {REPORT_FILE} has another digest; copy the whole "
            "report again, or make it again from its cells"
        )
    ids, pictures, families, cells = load_outcome_arrays(path.name, packed)
    rows: list[ReportRow] = []
    first = 0  # cell of the next row
    for row_entry in entry["rows"]:
        row = load_report_row(row_entry, cells[first:])
        first += len(row.outcomes)
        rows.append(row)
    if first != len(cells):
        raise ValueError(f"outcomes of {len(cells)} cells, more than the rows have")
    return ReportTable(
        claims=tuple(map(load_claim, entry["claims"])),
        rows=rows,
        ids=ids,
        families=families,
        pictures=pictures,
        chance=conform(entry["chance"], dict[str, Any], "chance"),
        baseline=conform(entry.get("baseline", ""), str, "baseline"),
        left_out=conform(entry.get("left_out", ()), tuple[str, ...], "left_out"),
        **words,
    )


def digest_bytes(content: bytes) -> str:
    """sha256, as JSON has it."""
    return hashlib.sha256(content).hexdigest()


def load_outcome_arrays(name: str, packed_file: bytes) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """ids, pictures and families (Q,) of a table's questions, and which were answered right, or scores from 0
    to 1 (cells, Q), from the file of this name."""
    with np.load(io.BytesIO(packed_file)) as arrays:
        words = [arrays[key] for key in ("ids", "pictures", "families")]
        has_scores = "scores" in arrays
        stored = arrays["scores" if has_scores else "right"]  # (cells, Q) or (cells, Q / 8)
    shape = words[0].shape
    for array in words:
        if array.ndim != 1 or array.shape != shape or array.dtype.kind != "U":
            raise ValueError(f"{name}: {array.dtype} {array.shape}, expected words {shape}")
    if has_scores:
        check_scores(stored, shape[0], name)
        return words[0], words[1], words[2], stored
    if len(stored) and stored.shape[1:] != (math.ceil(shape[0] / 8),):
        raise ValueError(f"{name}: outcomes of shape {stored.shape} for {shape[0]} questions")
    cells = stored
    if len(stored):  # without a cell there are no bits to unpack
        cells = np.unpackbits(stored, axis=1, count=shape[0]).astype(bool)
    return words[0], words[1], words[2], cells


def check_scores(scores: NDArray, questions: int, name: str) -> None:
    """ValueError for what are no scores of that many questions."""
    if scores.dtype != np.float64 or scores.ndim != 2 or scores.shape[1] != questions:
        raise ValueError(
            f"{name}: scores {scores.dtype} {scores.shape}, expected float64 of {questions} questions"
        )
    if not np.all((scores >= 0) & (scores <= 1)):
        raise ValueError(f"{name}: scores are from 0 to 1")


def load_report_row(entry: Mapping[str, Any], cells: NDArray) -> ReportRow:
    """A row, whose outcomes are the first of `cells`, one a seed."""
    seeds = conform(entry["seeds"], list[int], "seeds")
    if len(cells) < len(seeds):
        raise ValueError(f"outcomes of {len(cells)} cells, fewer than the rows have")
    row = ReportRow(*(conform(entry[name], str, name) for name in ("block", "label", "ours")))
    row.outcomes = dict(zip(seeds, cells))
    row.missing = conform(entry["missing"], list[int], "missing")
    row.efficiency = conform(entry["efficiency"], dict[str, int | float], "efficiency")
    # earlier versions did not write these two down
    row.training = conform(entry.get("training", ()), tuple[str, ...], "training")
    row.settings = conform(entry.get("settings", {}), dict[str, str], "settings")
    row.baseline, row.uncompressed = (conform(entry.get(name, ""), str, name) for name in REFERENCES)
    row.absent = conform(entry.get("absent", ""), str, "absent")
    keys = conform(entry.get("keys", ()), list[str | None], "keys")
    for seed, key in zip(seeds, keys):
        if key:
            row.keys[seed] = key
    return row


def load_claim(entry: Mapping[str, Any]) -> Claim:
    """A claim from JSON, which has lists where a claim has tuples."""
    hints = get_type_hints(Claim)
    fields = {}
    for name, value in entry.items():
        if name not in ("gain_sums", "looks"):
            fields[name] = conform(value, hints[name], name)
    fields["looks"] = load_looks(entry.get("looks", ()), len(fields["pairs"]))
    gain_sums = []
    for name, gains, weights in entry.get("gain_sums", ()):  # earlier versions had none
        pairs = conform(gains, tuple[tuple[str, str], ...], "gains")
        gain_sum = GainSum(
            conform(name, str, "name"),
            tuple(Gain(*pair) for pair in pairs),
            conform(weights, tuple[float, ...], "weights"),
        )
        gain_sums.append(gain_sum)
    fields["gain_sums"] = tuple(gain_sums)
    return Claim(**fields)


def load_looks(entry: object, pairs: int) -> tuple[tuple[int, ...], ...]:
    """Looks at a claim of so many pairs; earlier versions wrote one number for all of them."""
    looks = []
    for look in conform(entry, list[int | tuple[int, ...]], "looks"):
        seeds_by_pair = (look,) * pairs if isinstance(look, int) else look
        if len(seeds_by_pair) != pairs:
            raise ValueError(f"looks: seeds of {len(seeds_by_pair)} pairs, the claim has {pairs}")
        if any(seeds < 0 for seeds in seeds_by_pair):
            raise ValueError(f"looks: {look!r:.60}: a number of seeds is 0 or more")
        looks.append(seeds_by_pair)
    return tuple(looks)
