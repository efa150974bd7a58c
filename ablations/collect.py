"""From finished cells to outcomes: which questions each row of a table answered right at each seed."""
import json
import platform
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ablations import maps, measured, prefill, spec
from ablations.outcomes import Report, Row, Table
from compressors.errors import UsageError
from experiments import tables
from experiments.answers import majority_rates
from experiments.cells import Cell, blind_cells
from experiments.config import Config
from experiments.data.llava import Sample
from experiments.plan import Stage, plan
from experiments.progress import Reporter
from experiments.results import METRICS, PREDICTIONS, questions
from experiments.stage_files import DONE
from experiments.stages import Store
from llm_adapters.conversation import Turn

FLAG = b'"correct": '  # never inside a JSON string, where its quotes would be escaped
BLIND = "no image"
COUNTS = "prefill.json"
FIRST_SEEDS = ["0", "1", "2"]


@dataclass(frozen=True)
class Done:
    """A finished cell."""

    cell: Cell
    stage: Stage


def report(wanted: Sequence[str], axes: Mapping[str, list[str]], store: Store, folder: Path, command: str,
           measuring: Reporter | None = None) -> Report:
    """Tables by name or path from what is finished below `store`. In `folder` counted FLOPs, measured times
    and drawn maps are kept from one report to the next. `measuring`: measure them now."""
    for key, values in axes.items():
        if len(values) > 1 and key != "seed":
            raise UsageError(f"{key}={','.join(values)}: a report takes one value; make one for each")
    asked = {"seed": seeds_there(store.root), **axes}
    files = tables.load_all(wanted, asked)
    finished: dict[str, Done] = {}
    shown: list[tuple[Row, Config]] = []
    found = [collect(file, store, finished, shown) for file in files]
    for file, table in zip(files, found):
        table.sweep = sweep(file, asked)
    for (row, _), count in zip(shown, prefill.counts([config for _, config in shown], folder / COUNTS)):
        row.efficiency |= {} if count is None else {"prefill_flops": count}
    new = Report(found, {"command": command, **made(list(finished.values()), store)})
    measured.add(new, shown, folder, measuring)
    maps.add(new, [(done.cell, done.stage) for done in finished.values()], store, folder)
    return new


def seeds_there(root: Path) -> list[str]:
    """The seeds that any cell below an output directory has finished at."""
    names = (path.name for path in (root / "cells").glob("*_seed=*"))
    found = {match[1] for name in names if (match := re.search(r"_seed=(\d+)-\w+$", name))}
    return sorted(found, key=int) or FIRST_SEEDS


def sweep(file: tables.TableFile, axes: Mapping[str, list[str]]) -> str:
    """The command that runs a table's cells."""
    own = file.name if file.path.parent == tables.folder() else str(file.path)
    words = [f"table={own}", *(f"{key}={','.join(values)}" for key, values in axes.items())]
    return f"python -m experiments.sweep {shlex.join(words)}"


def collect(file: tables.TableFile, store: Store, finished: dict[str, Done],
            shown: list[tuple[Row, Config]]) -> Table:
    """One table; its finished cells are added to `finished` by key, its rows with a cell of each to `shown`.
    """
    claims = spec.claims(file)
    cells = [cell for row in file.rows for cell in row.cells]
    blind = [tables.TableRow(BLIND, each.label, "", (each,)) for each in blind_cells(cells)]
    rows, there = [], []
    for row in [*blind, *file.rows]:
        made = Row(row.block, row.label, row.ours)
        for cell in row.cells:
            stage = plan(cell.config)
            if store.status(stage) == "done":
                there.append((made, Done(cell, stage)))
            else:
                made.missing.append(cell.config.seed)
        rows.append(made)
    finished |= {done.stage.key: done for _, done in there}
    table = Table(file.name, file.heading, file.title, claims, rows)
    if there:
        shown += fill(table, there, store)
    table.rows = [row for row in rows if row.block != BLIND or row.outcomes]
    return table


def fill(table: Table, there: Sequence[tuple[Row, Done]], store: Store) -> list[tuple[Row, Config]]:
    """Outcomes and efficiency of the finished cells; the rows, each with the configuration of its first."""
    first = questions(there[0][1].stage)
    read = read_questions(store.path(there[0][1].stage) / PREDICTIONS)
    table.ids = np.array([sample.id for sample in read])
    table.pictures = np.array([picture_of(sample) for sample in read])
    table.families = np.array([sample.families[0] for sample in read])
    table.chance = majority_rates(read)
    for row, done in there:
        path = store.path(done.stage)
        if questions(done.stage) != first:
            raise UsageError(f"{table.heading}, row '{row.label}': answers other questions than row "
                             f"'{there[0][0].label}'; rows of a table have the same data.test and data.seed")
        row.outcomes[done.cell.config.seed] = right = read_right(path / PREDICTIONS)
        if len(right) != len(read):
            raise UsageError(f"{path / PREDICTIONS}: {len(right)} answers to {len(read)} questions; "
                             "remove that folder and run the sweep again")
    first_of = {row.label: (row, done) for row, done in reversed(there)}.values()
    for row, done in first_of:
        metrics = json.loads((store.path(done.stage) / METRICS).read_text(encoding="utf-8"))
        row.efficiency = dict(metrics.get("efficiency", {}))
    return [(row, done.cell.config) for row, done in first_of]


def read_questions(path: Path) -> list[Sample]:
    """The questions of a file of predictions, in order."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Sample(row["id"], tuple(row.get("images", ())), (Turn(row["question"], row["answer"]),),
                   (row["family"],)) for row in rows]


def picture_of(sample: Sample) -> str:
    """What questions that are answered right or wrong together have in common: the first picture that they
    see; their conversation where they see none (or where an earlier version has not written it down)."""
    return str(sample.images[0]) if sample.images else sample.id.rpartition("#")[0] or sample.id


def read_right(path: Path) -> NDArray[np.bool_]:
    """(Q,) right or wrong. A thousand files are read in a second, so they are not parsed as JSON."""
    pieces = path.read_bytes().split(FLAG)[1:]
    return np.array([piece[:1] == b"t" for piece in pieces])


def made(finished: Sequence[Done], store: Store) -> dict[str, Any]:
    """Versions, and the time that all stages took, each once, beside what it would be without sharing."""
    stages = {key: stage for done in finished for key, stage in done.stage.ancestors().items()}
    notes = {key: store.done(stage) for key, stage in stages.items() if (store.path(stage) / DONE).is_file()}
    seconds = {key: note["seconds"] for key, note in notes.items()}
    versions: dict[str, set[str]] = {}
    for note in notes.values():
        for package, version in note["versions"].items():
            versions.setdefault(package, set()).add(version)
    return {
        "presets": sorted({done.cell.config.preset for done in finished}),
        "cells": len(finished),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_without_sharing": round(sum(seconds.get(key, 0.0) for done in finished
                                             for key in done.stage.ancestors()), 1),
        "finished": max((note["finished"] for note in notes.values()), default=""),
        "versions": {package: ", ".join(sorted(found)) for package, found in sorted(versions.items())},
        "machine": " ".join(machine()),
    }


def machine() -> Iterator[str]:
    """Of the report, which is the run's as a rule."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    yield next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
               platform.processor() or platform.machine())
    yield f"({platform.system()} {platform.machine()}, Python {platform.python_version()})"
