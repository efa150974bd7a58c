"""Runs the cells of a sweep, in this process or by workers: one that fails does not stop the others.

What workers share is the stage store; what this process does is to hand out units whose inputs are done, to
publish cells, and to tell. It may be killed at any moment: its workers end with it, and the next run goes on.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.config.schema import GPU_ACCELERATORS
from experiments.runtime.files import write_atomic
from experiments.store import results
from experiments.store.folder import draft_folder_of, find_progress_time
from experiments.store.plan import Stage
from experiments.store.store import StageFailed, Store
from experiments.sweep.launcher import create_launcher
from experiments.sweep.options import LaunchOptions
from experiments.sweep.request import CellJob
from experiments.sweep.units import WorkUnit, make_units, name_runs
from experiments.sweep.worker import UnitOutcome

FinishedTeller = Callable[[Cell, Stage], None]
# of a unit whose workers die, killed, out of memory or out of time, at one place: one that comes further each
# time is not given up
UNIT_ATTEMPTS = 3
LOG_TAIL_LINES = 5  # lines of a failed cell's log that are shown
RETRY_SECONDS = 0.5  # seconds until a stage that another sweep computes is looked at again


class Failure(NamedTuple):
    """Why a stage failed, in one line, and the log that has more."""

    reason: str
    log: Path


class FailedCell(NamedTuple):
    cell: Cell
    reason: str
    log: Path


@dataclass
class CellOutcomes:
    """What became of the cells: finished ones by the key of their last stage, and why others failed."""

    finished: set[str] = field(default_factory=set)
    failed: list[FailedCell] = field(default_factory=list)


def launch_cells(
    jobs: list[CellJob], store: Store, options: LaunchOptions, tell: FinishedTeller
) -> CellOutcomes:
    """Run every cell that is not finished, and publish it; `tell` is called when one has just finished."""
    jobs = name_runs(jobs)
    store.report.announce_cells(len(jobs))
    if options.in_process:
        return run_cells_in_turn(jobs, store, tell)
    return UnitScheduler(jobs, store, options, tell).run_units()


def run_cells_in_turn(jobs: list[CellJob], store: Store, tell: FinishedTeller) -> CellOutcomes:
    """One cell after another in this process; a failed stage is not tried twice."""
    outcomes = CellOutcomes()
    failures: dict[str, Failure] = {}  # by the key of the stage that failed
    for cell, stage in jobs:
        store.report.begin_cell(results.title_cell(cell))
        failed_keys = [key for key in stage.collect_stages() if key in failures]
        if failed_keys:
            failure = failures[failed_keys[0]]
        else:
            try:
                is_new = not store.is_finished(stage)
                store.compute(stage)
                results.publish_cell(cell, stage, store)
                outcomes.finished.add(stage.key)
                if is_new:
                    tell(cell, stage)
                continue
            except StageFailed as error:
                log = results.locate_log(store.root, results.name_cell_folder(cell), stage.key)
                log.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(log, error.format_trace())
                failure = Failure(str(error), log)
                failures[error.stage.key] = failure
                store.report.write_note(f"failed: {error}; see {log}")
        outcomes.failed.append(FailedCell(cell, failure.reason, failure.log))
    return outcomes


def read_log_tail(log: Path) -> list[str]:
    """The last lines of a log; none where there is no log."""
    if not log.is_file():
        return []
    return log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]


class UnitScheduler:
    """Hands units to a launcher as soon as their inputs are done, until none is left."""

    def __init__(self, jobs: list[CellJob], store: Store, options: LaunchOptions, tell: FinishedTeller):
        self.store = store
        self.tell = tell
        self.report = store.report
        self.outcomes = CellOutcomes()
        self.jobs = {stage.key: (cell, stage) for cell, stage in jobs}
        # units by the key of their stage
        self.units = make_units(jobs, store)
        self.waiting = dict(self.units)
        self.running: set[str] = set()
        self.failures: dict[str, Failure] = {}
        self.deaths: Counter[str] = Counter()  # of workers, since a unit last came any further
        self.reached: dict[str, tuple[str, int]] = {}  # where a unit's last worker died: key, time
        self.retry_times: dict[str, float] = {}  # of units that another sweep computes: when to look again
        accelerators = {unit.stage.config.trainer.accelerator for unit in self.units.values()}
        uses_gpu = not accelerators.isdisjoint(GPU_ACCELERATORS)
        self.launcher = create_launcher(options, store, uses_gpu)

    def run_units(self) -> CellOutcomes:
        """All of it; workers are ended whatever happens."""
        try:
            for key in self.jobs:
                if key not in self.units:  # finished by an earlier run
                    self._publish_cell(key)
            while self.waiting or self.running:
                self._submit_ready_units()
                for unit, outcome in self.launcher.poll(RETRY_SECONDS):
                    self._take_outcome(unit, outcome)
        finally:
            self.launcher.close()
        for key, (cell, _) in self.jobs.items():
            if key in self.failures:
                failure = self.failures[key]
                self.outcomes.failed.append(FailedCell(cell, failure.reason, failure.log))
        return self.outcomes

    def _submit_ready_units(self) -> None:
        """As many as the launcher takes."""
        ready = self._list_ready_units()[: self.launcher.free]
        if not ready:
            return
        for unit in ready:
            self.running.add(unit.key)
            del self.waiting[unit.key]
        self.launcher.submit(ready)

    def _list_ready_units(self) -> list[WorkUnit]:
        """Units whose inputs are done; those that another sweep has come last."""
        unfinished = self.waiting.keys() | self.running
        now = time.monotonic()
        ready = []
        for unit in self.waiting.values():
            inputs_done = not unit.needs & unfinished
            if inputs_done and self.retry_times.get(unit.key, 0.0) <= now:
                ready.append(unit)
        return sorted(ready, key=lambda unit: unit.key in self.retry_times)

    def _take_outcome(self, unit: WorkUnit, outcome: UnitOutcome) -> None:
        """What follows from how a unit ended. UsageError and OSError end the sweep."""
        self.running.remove(unit.key)
        if outcome.kind == "usage":
            raise UsageError(outcome.text)
        if outcome.kind == "disk":
            error = OSError(outcome.text)
            error.errno = outcome.errno
            raise error
        if outcome.kind == "busy":
            if unit.key not in self.retry_times:
                self.report.write_note(f"waiting for another process to finish {outcome.text}")
            self.retry_times[unit.key] = time.monotonic() + RETRY_SECONDS
            self.waiting[unit.key] = unit
        elif outcome.kind == "died" and self._count_deaths(unit) < UNIT_ATTEMPTS:
            self.report.write_warning(f"{unit.label}: {outcome.text}; it goes on where it stopped")
            self.waiting[unit.key] = unit
        elif outcome.kind == "done":
            if unit.key in self.jobs:
                self._publish_cell(unit.key)
                self.tell(*self.jobs[unit.key])
        else:
            self._fail_unit(unit, outcome)

    def _count_deaths(self, unit: WorkUnit) -> int:
        """How many workers have died of a unit without getting any further, the one that has just died
        included."""
        stage = self.store.find_next_stage(unit.stage)
        draft = draft_folder_of(self.store.locate_result(stage))
        reached = (stage.key, find_progress_time(draft))
        if self.reached.get(unit.key) != reached:
            self.deaths[unit.key] = 0
            self.reached[unit.key] = reached
        self.deaths[unit.key] += 1
        return self.deaths[unit.key]

    def _publish_cell(self, key: str) -> None:
        cell, stage = self.jobs[key]
        results.publish_cell(cell, stage, self.store)
        self.outcomes.finished.add(key)
        self.report.finish_cell(results.title_cell(cell))

    def _fail_unit(self, unit: WorkUnit, outcome: UnitOutcome) -> None:
        """Give up a unit and all that needs it."""
        # a failed stage has its name in the text; a worker that died knows none
        reason = outcome.text
        if outcome.kind != "failed":
            reason = f"{self.store.find_next_stage(unit.stage).name}: {outcome.text}"
        self.report.write_note(f"failed: {reason}; see {unit.log}")
        lost = {unit.key}
        for key, dependent in self.units.items():  # in the order of work, so that one pass finds all
            if key in self.waiting and dependent.needs & lost:
                lost.add(key)
                del self.waiting[key]
        for key in lost:
            self.failures[key] = Failure(reason, unit.log)
