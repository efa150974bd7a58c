"""What workers are given: stages whose inputs are done, so that no worker waits for another's result.

A stage is a unit of its own if several others read it, or if it is a cell's last one; any other stage is
computed by the worker of the unit that reads it. `launch.workers` units run at once.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.config.cells import Cell
from experiments.store.plan import Stage
from experiments.store.results import locate_log, name_cell_folder, title_cell
from experiments.store.run_names import title_parts
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
    for _, last_stage in jobs:
        if store.find_fault(last_stage) is not None:
            collect_needed_stages(last_stage, store, needed)
    readers: Counter[str] = Counter()  # how many of these stages read a stage
    for stage in needed.values():
        readers.update(source.key for source in stage.inputs.values())
    cell_keys = {last_stage.key for _, last_stage in jobs}
    first_users: dict[str, Cell] = {}  # by the key of a stage
    work_order: dict[str, None] = {}  # keys of stages: a dict keeps the order and each key once
    for cell, last_stage in jobs:
        for key in last_stage.collect_stages():
            first_users.setdefault(key, cell)
            if last_stage.key in needed:
                work_order.setdefault(key)
    unit_keys = [key for key in work_order if key in needed and (readers[key] > 1 or key in cell_keys)]
    units = {}
    for key in unit_keys:
        stage = needed[key]
        cell = first_users[key]
        log_name = name_cell_folder(cell) if key in cell_keys else stage.kind
        log = locate_log(store.root, log_name, key)
        needs = find_units_before(stage, needed, set(unit_keys))
        units[key] = WorkUnit(stage, title_cell(cell), log, frozenset(needs))
    return units


def collect_needed_stages(stage: Stage, store: Store, needed: dict[str, Stage]) -> None:
    """Collect what has to be computed for a stage, inputs first."""
    if stage.key in needed:
        return
    for source in stage.inputs.values():
        if source.key not in needed and not store.is_finished(source):
            collect_needed_stages(source, store, needed)
    needed[stage.key] = stage


def find_units_before(stage: Stage, needed: dict[str, Stage], unit_keys: set[str]) -> Iterator[str]:
    """The nearest units that a unit waits for."""
    for source in stage.inputs.values():
        if source.key in unit_keys:
            yield source.key
        elif source.key in needed:
            # the unit's own worker computes it: what it waits for, the unit waits for
            yield from find_units_before(source, needed, unit_keys)


def name_runs(jobs: list[CellJob]) -> list[CellJob]:
    """The same cells with what loggers call the runs of their stages: a stage of one cell is called after it,
    one that several share after its parts."""
    owners: dict[str, set[str]] = {}  # titles of the cells that share a stage, by its key
    for cell, last_stage in jobs:
        for key in last_stage.collect_stages():
            owners.setdefault(key, set()).add(title_cell(cell))
    return [(cell, name_stage(stage, owners)) for cell, stage in jobs]


def name_stage(stage: Stage, owners: dict[str, set[str]]) -> Stage:
    """A stage and all that it reads, named. `owners`: titles of the cells of each key."""
    inputs = {kind: name_stage(source, owners) for kind, source in stage.inputs.items()}
    titles = owners[stage.key]
    title = next(iter(titles)) if len(titles) == 1 else title_parts(stage.kind, stage.config)
    return replace(stage, inputs=inputs, run_name=f"{stage.kind} {title}")
