"""From finished cells to outcomes: which questions each row of a table answered right at each seed."""

import platform
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations import earlier
from ablations.claims import spec
from ablations.costs import measured, prefill
from ablations.earlier import EarlierReport
from ablations.finished import (
    FinishedCell,
    fill_questions,
    find_finished_cell,
    load_outcomes,
    read_efficiency,
)
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.writing import maps
from compressors.errors import UsageError
from experiments.config import table_files, tables
from experiments.config.cells import make_blind_cells
from experiments.config.schema import Config
from experiments.runtime.processor import read_processor_name
from experiments.runtime.progress import Reporter
from experiments.store.folder import DONE_FILE
from experiments.store.results import identify_questions
from experiments.store.store import Store

NO_IMAGE_BLOCK = "no image"
COUNTS_FILE = "prefill.json"
FIRST_SEEDS = ["0", "1", "2"]


def collect_report(
    wanted: Sequence[str],
    axes: Mapping[str, list[str]],
    store: Store,
    folder: Path,
    command: str,
    measuring: Reporter | None = None,
    before: Path | None = None,
) -> Report:
    """Tables by name or path from what is finished below `store`, and from the earlier report in the folder
    `before`. In `folder` counted FLOPs, measured times and drawn maps are kept from one report to the next.
    `measuring`: measure them now."""
    for key, values in axes.items():
        if len(values) > 1 and key != "seed":
            raise UsageError(f"{key}={','.join(values)}: a report takes one value; make one for each")
    known = earlier.read_earlier_report(before)
    asked = {"seed": find_finished_seeds(store.root, known), **axes}
    files = tables.load_table_files(wanted, asked)
    finished: dict[str, FinishedCell] = {}
    shown: list[tuple[ReportRow, Config]] = []
    found = [collect_table(file, store, known, finished, shown) for file in files]
    for file, table in zip(files, found):
        table.sweep = format_sweep_command(file, asked | ({"earlier": [str(before)]} if before else {}))
    for (row, _), count in zip(
        shown, prefill.look_up_counts([config for _, config in shown], folder / COUNTS_FILE)
    ):
        row.efficiency |= {} if count is None else {"prefill_flops": count}
    new = Report(found, {"command": command, **collect_provenance(list(finished.values()), store, known)})
    measured.add_measured_columns(new, shown, folder, measuring)
    maps.add_maps(new, [(done.cell, done.stage) for done in finished.values()], store, folder, known.report)
    return new


def find_finished_seeds(root: Path, known: EarlierReport) -> list[str]:
    """The seeds that any cell below an output directory, or of an earlier report, has finished at."""
    names = (path.name for path in (root / "cells").glob("*_seed=*"))
    found = {match[1] for name in names if (match := re.search(r"_seed=(\d+)-\w+$", name))}
    return sorted(found | known.finished_seeds, key=int) or FIRST_SEEDS


def format_sweep_command(file: tables.TableFile, axes: Mapping[str, list[str]]) -> str:
    """The command that runs a table's cells."""
    table_word = table_files.spell_table(file.name, file.path)
    words = [f"table={table_word}", *(f"{key}={','.join(values)}" for key, values in axes.items())]
    return f"python -m experiments.sweep {shlex.join(words)}"


def collect_table(
    file: tables.TableFile,
    store: Store,
    known: EarlierReport,
    finished: dict[str, FinishedCell],
    shown: list[tuple[ReportRow, Config]],
) -> ReportTable:
    """One table; its finished cells are added to `finished` by key, its rows with a cell each to `shown`."""
    claims = spec.read_claims(file)
    cells = [cell for row in file.rows for cell in row.cells]
    blind = [tables.TableRow(NO_IMAGE_BLOCK, each.label, "", (each,)) for each in make_blind_cells(cells)]
    rows, there = [], []
    for row in [*blind, *file.rows]:
        made = ReportRow(row.block, row.label, row.ours)
        for cell in row.cells:
            done = find_finished_cell(cell, store, known)
            if done is None:
                made.missing.append(cell.config.seed)
            else:
                there.append((made, done))
        rows.append(made)
    finished |= {done.stage.key: done for _, done in there}
    table = ReportTable(file.name, file.heading, file.title, claims, rows)
    if there:
        shown += fill_rows(table, there, store)
    table.rows = [row for row in rows if row.block != NO_IMAGE_BLOCK or row.outcomes]
    return table


def fill_rows(
    table: ReportTable, there: Sequence[tuple[ReportRow, FinishedCell]], store: Store
) -> list[tuple[ReportRow, Config]]:
    """Outcomes and efficiency of the finished cells; the rows, each with the configuration of its first."""
    first = there[0][1]
    fill_questions(table, first, store)
    for row, done in there:
        if identify_questions(done.stage) != identify_questions(first.stage):
            raise UsageError(
                f"{table.heading}, row '{row.label}': answers other questions than row "
                f"'{there[0][0].label}'; rows of a table have the same data.test and data.seed"
            )
        seed = done.cell.config.seed
        row.outcomes[seed], row.keys[seed] = load_outcomes(done, store, table), done.stage.key
    first_of = {row.label: (row, done) for row, done in reversed(there)}.values()
    for row, done in first_of:
        row.efficiency = read_efficiency(done, store)
    return [(row, done.cell.config) for row, done in first_of]


def collect_provenance(every: Sequence[FinishedCell], store: Store, known: EarlierReport) -> dict[str, Any]:
    """Versions, and the time that all stages took, each once, beside what it would be without sharing; how
    many cells are an earlier report's, and how that came about."""
    finished = [done for done in every if done.earlier_cell is None]
    taken = len(every) - len(finished)
    stages = {key: stage for done in finished for key, stage in done.stage.collect_stages().items()}
    notes = {
        key: store.read_note(stage)
        for key, stage in stages.items()
        if (store.locate_result(stage) / DONE_FILE).is_file()
    }
    seconds = {key: note["seconds"] for key, note in notes.items()}
    versions: dict[str, set[str]] = {}
    for note in notes.values():
        for package, version in note["versions"].items():
            versions.setdefault(package, set()).add(version)
    return {
        "presets": sorted({done.cell.config.preset for done in every}),
        "cells": len(finished),
        "seconds": round(sum(seconds.values()), 1),
        "seconds_without_sharing": round(
            sum(seconds.get(key, 0.0) for done in finished for key in done.stage.collect_stages()), 1
        ),
        "finished": max((note["finished"] for note in notes.values()), default=""),
        "versions": {package: ", ".join(sorted(found)) for package, found in sorted(versions.items())},
        "machine": " ".join(describe_machine()),
        **({"taken": taken, "earlier": known.contributing_runs} if taken else {}),
    }


def describe_machine() -> Iterator[str]:
    """Of the report, which is the run's as a rule."""
    yield read_processor_name()
    yield f"({platform.system()} {platform.machine()}, Python {platform.python_version()})"
