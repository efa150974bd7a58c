"""Runs the cells of a sweep, in this process or by workers: one that fails does not stop the others.

What workers share is the stage store; what this process does is to hand out units whose inputs are done, to
publish cells, and to tell. It may be killed at any moment: its workers end with it, and the next run goes on.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.runtime.files import write_atomic
from experiments.store import results
from experiments.store.plan import Stage
from experiments.store.store import StageFailed, StageRunner, Store
from experiments.sweep.options import LaunchOptions, count_cores, list_gpus
from experiments.sweep.pool import Pool
from experiments.sweep.request import CellJob
from experiments.sweep.slurm import Cluster
from experiments.sweep.units import WorkUnit, make_units
from experiments.sweep.worker import UnitOutcome

UNIT_ATTEMPTS = 3  # of a unit whose workers die: killed, out of memory, out of time
LOG_TAIL_LINES = 5  # lines of a failed cell's log that are shown
RETRY_SECONDS = 0.5  # seconds until a stage that another sweep computes is looked at again


@dataclass
class CellOutcomes:
    """What became of the cells: finished ones by the key of their last stage, and why others failed."""

    finished: set[str] = field(default_factory=set)
    failed: list[tuple[Cell, str, Path]] = field(default_factory=list)  # one line, the log


def launch_cells(
    jobs: list[CellJob], store: Store, options: LaunchOptions, runner: Callable[[str], StageRunner]
) -> CellOutcomes:
    """Run every cell that is not finished, and publish it."""
    store.report.announce_cells(len(jobs))
    if options.in_process:
        return run_cells_in_turn(jobs, store)
    return Launcher(jobs, store, options, runner).run_units()


def run_cells_in_turn(jobs: list[CellJob], store: Store) -> CellOutcomes:
    """One cell after another in this process; a failed stage is not tried twice."""
    ended, broken = CellOutcomes(), {}
    for cell, stage in jobs:
        store.report.begin_cell(title_cell(cell))
        known = next((broken[key] for key in stage.collect_stages() if key in broken), None)
        if known is None:
            try:
                store.compute(stage)
                results.publish_cell(cell, stage, store)
                ended.finished.add(stage.key)
                continue
            except StageFailed as error:
                log = store.root / "logs" / f"{results.name_cell_folder(cell)}-{stage.key[:8]}.log"
                log.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(log, error.format_trace())
                known = broken[error.stage.key] = str(error), log
                store.report.write_note(f"failed: {error}; see {log}")
        ended.failed.append((cell, *known))
    return ended


def title_cell(cell: Cell) -> str:
    """A cell's name on screen."""
    return f"{cell.label} seed={cell.config.seed}"


def read_log_tail(log: Path) -> list[str]:
    """The last lines of a log."""
    return (
        log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
        if log.is_file()
        else []
    )


class Launcher:
    """Units to workers, until none is left."""

    def __init__(
        self, jobs: list[CellJob], store: Store, options: LaunchOptions, runner: Callable[[str], StageRunner]
    ):
        self.store, self.report, self.ended = store, store.report, CellOutcomes()
        self.cells: dict[str, Cell] = {stage.key: cell for cell, stage in jobs}
        self.stages: dict[str, Stage] = {stage.key: stage for _, stage in jobs}
        self.units = make_units(jobs, store)
        self.left = dict(self.units)
        self.running: set[str] = set()
        self.deaths: Counter[str] = Counter()
        self.taken: dict[str, float] = {}  # units that another sweep has, and when to look again
        self.broken: dict[str, tuple[str, Path]] = {}
        self.hands = self._make_workers(options, runner)

    def _make_workers(self, options: LaunchOptions, runner: Callable[[str], StageRunner]) -> Pool | Cluster:
        root = self.store.root
        if options.where == "slurm":
            return Cluster(root, runner, self.report, options.workers, options.threads, options.slurm)
        configs = [unit.stage.config for unit in self.units.values()]
        there = list_gpus(any(c.trainer.accelerator in ("auto", "gpu", "cuda") for c in configs))
        size = (len(there) or count_cores()) if options.workers == "auto" else options.workers
        threads = options.threads or (max(1, count_cores() // size) if there else 1)
        return Pool(root, runner, self.report, size, threads, there)

    def run_units(self) -> CellOutcomes:
        """All of it; workers are ended whatever happens."""
        try:
            for key in self.cells:
                if key not in self.units:
                    self._publish_cell(key)
            while self.left or self.running:
                ready = self._list_ready_units()[: self.hands.free]
                if ready:
                    self.running.update(unit.key for unit in ready)
                    for unit in ready:
                        del self.left[unit.key]
                    self.hands.submit(ready)
                for unit, outcome in self.hands.poll(RETRY_SECONDS):
                    self._take_outcome(unit, outcome)
        finally:
            self.hands.close()
        self.ended.failed += [
            (cell, *self.broken[key]) for key, cell in self.cells.items() if key in self.broken
        ]
        return self.ended

    def _list_ready_units(self) -> list[WorkUnit]:
        """Units whose inputs are done; those that another sweep has come last."""
        open_keys, now = self.left.keys() | self.running, time.monotonic()
        ready = [
            unit
            for unit in self.left.values()
            if not unit.needs & open_keys and self.taken.get(unit.key, 0.0) <= now
        ]
        return sorted(ready, key=lambda unit: unit.key in self.taken)

    def _take_outcome(self, unit: WorkUnit, outcome: UnitOutcome) -> None:
        """One unit has come back."""
        self.running.remove(unit.key)
        if outcome.kind == "usage":
            raise UsageError(outcome.text)
        if outcome.kind == "disk":
            raise OSError(0, outcome.text)
        if outcome.kind == "busy":
            if unit.key not in self.taken:
                self.report.write_note(f"waiting for another process to finish {outcome.text}")
            self.taken[unit.key] = time.monotonic() + RETRY_SECONDS
            self.left[unit.key] = unit
        elif outcome.kind == "died" and self.deaths[unit.key] + 1 < UNIT_ATTEMPTS:
            self.deaths[unit.key] += 1
            self.report.write_warning(f"{unit.label}: {outcome.text}; it goes on where it stopped")
            self.left[unit.key] = unit
        elif outcome.kind == "done":
            if unit.key in self.cells:
                self._publish_cell(unit.key)
        else:
            self._fail_unit(unit, outcome)

    def _publish_cell(self, key: str) -> None:
        results.publish_cell(self.cells[key], self.stages[key], self.store)
        self.ended.finished.add(key)
        self.report.finish_cell(title_cell(self.cells[key]))

    def _fail_unit(self, unit: WorkUnit, outcome: UnitOutcome) -> None:
        """Give up a unit and all that needs it."""
        why = outcome.text if outcome.kind == "failed" else f"{unit.stage.name}: {outcome.text}"
        self.report.write_note(f"failed: {why}; see {unit.log}")
        lost = {unit.key}
        while more := {key for key, other in self.left.items() if other.needs & lost}:
            for key in more:
                del self.left[key]
            lost |= more
        self.broken |= {key: (why, unit.log) for key in lost}
