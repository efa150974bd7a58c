"""Scores and times of a finished study, for the rows that a sweep shows beside its own.

times.json    what the stages of the study took: {machine, stages: [{load, seconds, steps}, ...]}, which
              `write_times` makes of the notes below the study's output directory
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ablations.outcomes import ReportRow, ReportTable
from ablations.report_files import load_report
from compressors.reading import read_json_file
from compressors.registry import conform
from experiments.runtime.files import write_atomic
from experiments.store.estimate import MeasuredStage, read_stage_note, read_workload
from experiments.store.folder import DONE_FILE
from experiments.sweep.studies import StudyScores

TIMES_FILE = "times.json"


def read_study_scores(folder: Path) -> StudyScores:
    """Scores of every cell of a report; its times, where it has noted some."""
    report = load_report(folder, "earlier")
    cells: dict[str, Mapping[str, Any]] = {}
    chance: dict[str, Mapping[str, Any]] = {}
    for table in report.tables:
        for row in table.rows:
            for seed, key in row.keys.items():
                cells[key] = score_cell(table, row, seed)
                chance[key] = table.chance
    times: list[MeasuredStage] = []
    machine = str(report.provenance.get("machine", "another machine"))
    path = folder / TIMES_FILE
    if path.is_file():
        content = conform(read_json_file(path), dict[str, Any], str(path))
        machine = conform(content["machine"], str, f"{path}: machine")
        for entry in conform(content["stages"], list[dict[str, Any]], f"{path}: stages"):
            times.append(MeasuredStage(read_workload(entry["load"]), entry["seconds"], entry["steps"]))
    place = "/".join(folder.parts[-3:])  # ablations/results/tiny, wherever the package is installed
    return StudyScores(cells, chance, times, machine, place)


def score_cell(table: ReportTable, row: ReportRow, seed: int) -> dict[str, Any]:
    """A cell in the form of metrics.json."""
    outcomes = row.outcomes[seed]
    families = {}
    counts = {}
    for family in sorted(set(table.families.tolist())):
        is_of_family = table.families == family  # (Q,)
        families[family] = float(outcomes[is_of_family].mean())
        counts[family] = int(is_of_family.sum())
    return {
        "overall": float(outcomes.mean()),
        "families": families,
        "counts": counts,
        "n": len(outcomes),
        "efficiency": row.efficiency,
    }


def write_times(root: Path, folder: Path, machine: str) -> None:
    """Write what the finished stages below an output directory took: of those of like work the median. What
    the folder has of other work stays."""
    alike: dict[str, list[tuple[float, int]]] = {}
    for path in sorted(root.glob(f"*/*/{DONE_FILE}")):
        note = read_stage_note(path)
        if note and not note["resumed"] and note.get("steps") and "load" in note:
            load = json.dumps(asdict(note["load"]), sort_keys=True)
            alike.setdefault(load, []).append((note["seconds"], note["steps"]))
    entries: dict[str, dict[str, Any]] = {}  # by the load
    if (folder / TIMES_FILE).is_file():
        for entry in read_json_file(folder / TIMES_FILE)["stages"]:
            # as it would be written today: older ones have fewer fields
            load = json.dumps(asdict(read_workload(entry["load"])), sort_keys=True)
            entries[load] = {**entry, "load": json.loads(load)}
    for load, measured in alike.items():
        seconds = round(median(seconds for seconds, _ in measured), 1)
        steps = measured[0][1]
        entries[load] = {"load": json.loads(load), "seconds": seconds, "steps": steps, "of": len(measured)}
    content = {"machine": machine, "stages": [entries[load] for load in sorted(entries)]}
    write_atomic(folder / TIMES_FILE, json.dumps(content, indent=1) + "\n")
