"""What a report is made of: which questions each row of a table answered right at each seed. It is read from
finished cells (`collect`), or from the files that an earlier report left:

    report.json               rows, claims, efficiency, versions: all but the outcomes
    plots/attention-1.png     attention maps, which need the trained model
    outcomes/table3.npz       ids, pictures and families (Q,) of the questions; right (cells, Q / 8), bits
                              packed, rows in order and within a row its seeds
"""

import dataclasses
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablations.claims.spec import Claim
from ablations.study import REPORT_FILE
from compressors.errors import UsageError
from experiments.runtime.files import write_atomic

REPORT_FORMAT, REPORT_JSON, OUTCOMES_FOLDER, PLOTS_FOLDER = 2, REPORT_FILE, "outcomes", "plots"


@dataclass
class ReportRow:
    """A line of a table. `outcomes`: seed -> (Q,) right or wrong, of finished cells; `keys`: seed -> the key
    of its evaluation, by which a later report finds it."""

    block: str
    label: str
    ours: str = ""
    outcomes: dict[int, NDArray[np.bool_]] = field(default_factory=dict)
    missing: list[int] = field(default_factory=list)
    efficiency: dict[str, float] = field(default_factory=dict)
    keys: dict[int, str] = field(default_factory=dict)


@dataclass
class ReportTable:
    """A table of the report. No questions where no cell has finished. `pictures`: what each question is
    about; `sweep`: the command that runs its cells."""

    name: str
    heading: str
    title: str
    claims: tuple[Claim, ...]
    rows: list[ReportRow]
    ids: NDArray = field(default_factory=lambda: np.array([], "<U1"))
    families: NDArray = field(default_factory=lambda: np.array([], "<U1"))
    pictures: NDArray = field(default_factory=lambda: np.array([], "<U1"))
    chance: dict[str, Any] = field(default_factory=dict)
    sweep: str = ""

    @property
    def family_names(self) -> list[str]:
        """All families; none if there is but one, which would repeat the whole."""
        found = sorted(set(self.families.tolist()))
        return found if len(found) > 1 else []

    @property
    def picture_numbers(self) -> NDArray[np.intp]:
        """A number for each question's picture."""
        return np.unique(self.pictures, return_inverse=True)[1]

    def compute_accuracies(self, row: ReportRow, family: str | None = None) -> list[float]:
        """Accuracy in % at each seed, of all questions or those of a family."""
        keep = slice(None) if family is None else self.families == family
        return [100.0 * float(right[keep].mean()) for right in row.outcomes.values()]


@dataclass
class Report:
    """All tables, and how they came about: command, versions, times. `maps`: attention maps as PNG."""

    tables: list[ReportTable]
    made: dict[str, Any]
    maps: list[bytes] = field(default_factory=list)


def save_report(report: Report, folder: Path) -> None:
    """Write what the report can be made from again."""
    (folder / OUTCOMES_FOLDER).mkdir(parents=True, exist_ok=True)
    tables = []
    for table in report.tables:
        rows = [
            {
                "block": row.block,
                "label": row.label,
                "ours": row.ours,
                "seeds": list(row.outcomes),
                "keys": [row.keys.get(seed) for seed in row.outcomes],
                "missing": row.missing,
                "efficiency": row.efficiency,
            }
            for row in table.rows
        ]
        tables.append(
            {
                "name": table.name,
                "heading": table.heading,
                "title": table.title,
                "chance": table.chance,
                "rows": rows,
                "sweep": table.sweep,
                "claims": [dataclasses.asdict(claim) for claim in table.claims],
            }
        )
        right = [bits for row in table.rows for bits in row.outcomes.values()]
        packed = np.packbits(np.stack(right), 1) if right else np.zeros((0, 0), np.uint8)
        content = io.BytesIO()
        np.savez_compressed(
            content, ids=table.ids, pictures=table.pictures, families=table.families, right=packed
        )
        write_atomic(locate_outcomes(folder, table.name), content.getvalue())
    (folder / PLOTS_FOLDER).mkdir(exist_ok=True)
    for number, each in enumerate(report.maps, 1):
        write_atomic(locate_map(folder, number), each)
    content = {"format": REPORT_FORMAT, "made": report.made, "maps": len(report.maps), "tables": tables}
    write_atomic(folder / REPORT_JSON, json.dumps(content, indent=1) + "\n")


def locate_outcomes(folder: Path, name: str) -> Path:
    return folder / OUTCOMES_FOLDER / f"table{name}.npz"


def locate_map(folder: Path, number: int) -> Path:
    return folder / PLOTS_FOLDER / f"attention-{number}.png"


def load_report(folder: Path, option: str = "results") -> Report:
    """A report from what `save` wrote, or a UsageError that names the file and the option that gave it."""
    path = folder / REPORT_JSON
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != REPORT_FORMAT:
            raise UsageError(f"{path}: format {content['format']}, this version reads {REPORT_FORMAT}")
        maps = [locate_map(folder, i + 1).read_bytes() for i in range(content.get("maps", 0))]
        return Report([load_report_table(each, folder) for each in content["tables"]], content["made"], maps)
    except FileNotFoundError as error:
        raise UsageError(
            f"{option}={folder}: no {error.filename}; give a folder that ablations.report wrote"
        ) from error
    except (KeyError, TypeError, ValueError, OSError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(
            f"{option}={folder}: not what ablations.report wrote ({type(error).__name__}: {error})"
        ) from error


def load_report_table(entry: dict[str, Any], folder: Path) -> ReportTable:
    """One table with its outcomes."""
    with np.load(locate_outcomes(folder, entry["name"])) as kept:
        ids, pictures, families, packed = (kept[name] for name in ("ids", "pictures", "families", "right"))
    right = iter(np.unpackbits(packed, 1, count=len(ids)).astype(bool) if len(packed) else ())
    rows = [
        ReportRow(
            row["block"],
            row["label"],
            row["ours"],
            {seed: next(right) for seed in row["seeds"]},
            row["missing"],
            row["efficiency"],
            {seed: key for seed, key in zip(row["seeds"], row.get("keys", ())) if key},
        )
        for row in entry["rows"]
    ]
    claims = tuple(
        Claim(**{**each, "pairs": tuple(map(tuple, each["pairs"])), "families": tuple(each["families"])})
        for each in entry["claims"]
    )
    return ReportTable(
        entry["name"],
        entry["heading"],
        entry["title"],
        claims,
        rows,
        ids,
        families,
        pictures,
        entry["chance"],
        entry["sweep"],
    )
