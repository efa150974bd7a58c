"""How a report came about: versions and machine that its cells ran with, and the time that they took."""

import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ablations.earlier import EarlierReport
from ablations.finished import FinishedCell
from experiments.runtime.processor import read_processor_name
from experiments.store.plan import Stage
from experiments.store.store import Store


def collect_provenance(
    cells: Sequence[FinishedCell], store: Store, earlier_report: EarlierReport
) -> dict[str, Any]:
    """Versions, and the time that all stages took, each once, beside what it would be without sharing; how
    many cells are an earlier report's, and how that came about."""
    presets = set()
    computed_cells = []
    for finished_cell in cells:
        presets.add(finished_cell.cell.config.preset)
        if finished_cell.earlier_cell is None:
            computed_cells.append(finished_cell)

    notes = read_stage_notes(computed_cells, store)
    last_finished = ""
    seconds = []
    for note in notes.values():
        seconds.append(note["seconds"])
        last_finished = max(last_finished, note["finished"])
    unshared_seconds = []
    for finished_cell in computed_cells:
        for key in finished_cell.stage.collect_stages():
            if key in notes:
                unshared_seconds.append(notes[key]["seconds"])

    provenance: dict[str, Any] = {
        "presets": sorted(presets),
        "cells": len(computed_cells),
        "seconds": round(sum(seconds), 1),
        "seconds_without_sharing": round(sum(unshared_seconds), 1),
        "finished": last_finished,
        "versions": join_versions(notes.values()),
        "machine": describe_machine(),
    }
    taken_cells = len(cells) - len(computed_cells)
    if taken_cells:
        provenance["taken"] = taken_cells
        provenance["earlier"] = earlier_report.contributing_runs
    return provenance


def read_stage_notes(cells: Sequence[FinishedCell], store: Store) -> dict[str, dict[str, Any]]:
    """What was noted when the stages of cells finished, by key. A stage whose folder was removed or damaged
    has none."""
    stages: dict[str, Stage] = {}
    for finished_cell in cells:
        stages |= finished_cell.stage.collect_stages()
    notes = {}
    for key, stage in stages.items():
        if store.is_finished(stage):
            notes[key] = store.read_note(stage)
    return notes


def join_versions(notes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Package -> the versions that stages ran with, as words."""
    versions: dict[str, set[str]] = {}
    for note in notes:
        for package, version in note["versions"].items():
            versions.setdefault(package, set()).add(version)
    joined_versions = {}
    for package in sorted(versions):
        joined_versions[package] = ", ".join(sorted(versions[package]))
    return joined_versions


def describe_machine() -> str:
    """The machine that makes the report, which is the run's as a rule."""
    system = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    return f"{read_processor_name()} ({system})"
