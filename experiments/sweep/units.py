"""What workers are given: stages whose inputs are done, so that no worker waits for another's result.

A stage is a unit of its own if several others read it, or if it is a cell's last one; any other stage is
computed by the worker of the unit that reads it. `launch.workers` units run at once.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.store.plan import Stage
from experiments.store.results import name_cell_folder
from experiments.store.store import Store
from experiments.sweep.request import CellJob


@dataclass(frozen=True)
class WorkUnit:
    """One errand. `label`: the (first) cell it is for; `needs`: keys of the units before it; `log`: where its
    worker writes."""

    stage: Stage
    label: str
    log: Path
    needs: frozenset[str]

    @property
    def key(self) -> str:
        return self.stage.key


def make_units(jobs: list[CellJob], store: Store) -> dict[str, WorkUnit]:
    """The units that are left to do, by key: cells in their order, each behind what it needs, so that the
    first rows are whole early."""
    needed: dict[str, Stage] = {}
    for _, root in jobs:
        if store.find_fault(root) is not None:
            collect_needed_stages(root, store, needed)
    readers = Counter(each.key for stage in needed.values() for each in stage.inputs.values())
    cells = {root.key: cell for cell, root in jobs}
    users = {key: cell for cell, root in reversed(jobs) for key in root.collect_stages()}
    path = dict.fromkeys(key for _, root in jobs if root.key in needed for key in root.collect_stages())
    alone = [key for key in path if key in needed and (readers[key] > 1 or key in cells)]
    found = {}
    for key in alone:
        stage, cell = needed[key], users[key]
        name = name_cell_folder(cell) if key in cells else stage.kind
        log = store.root / "logs" / f"{name}-{key[:8]}.log"
        needs = frozenset(find_units_before(stage, needed, set(alone)))
        found[key] = WorkUnit(stage, f"{cell.label} seed={cell.config.seed}", log, needs)
    return found


def collect_needed_stages(stage: Stage, store: Store, needed: dict[str, Stage]) -> None:
    """Collect what has to be computed for a stage, inputs first."""
    if stage.key not in needed:
        for each in stage.inputs.values():
            if each.key not in needed and store.find_status(each) != "done":
                collect_needed_stages(each, store, needed)
        needed[stage.key] = stage


def find_units_before(stage: Stage, needed: dict[str, Stage], alone: set[str]) -> Iterator[str]:
    """The nearest units that a unit waits for."""
    for each in stage.inputs.values():
        if each.key in alone:
            yield each.key
        elif each.key in needed:
            yield from find_units_before(each, needed, alone)
