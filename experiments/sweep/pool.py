"""Worker processes of this machine.

Each is started afresh (never forked: torch and CUDA do not survive that), leads a process group of its own,
and ends with its children when the command that started it ends, however that ends.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from experiments.runtime.processes import end_with_parent
from experiments.runtime.progress import Reporter
from experiments.store.store import StageRunner, Store
from experiments.sweep import worker
from experiments.sweep.units import WorkUnit
from experiments.sweep.worker import UnitOutcome

SPAWN_CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class PoolWorker:
    """One process and what it is doing. `number` picks its GPU."""

    number: int
    process: BaseProcess
    pipe: Connection
    unit: WorkUnit | None = None
    lane: Reporter = field(default_factory=Reporter)


class Pool:
    """`size` workers; one that dies is replaced when there is something to do."""

    def __init__(
        self,
        root: Path,
        runner: Callable[[str], StageRunner],
        report: Reporter,
        size: int,
        threads: int | None,
        gpus: list[str],
    ):
        self.root, self.runner, self.report = Path(root).absolute(), runner, report
        self.size, self.threads, self.gpus = size, threads, gpus
        self.workers: dict[int, PoolWorker] = {}

    @property
    def free(self) -> int:
        return self.size - sum(w.unit is not None for w in self.workers.values())

    def submit(self, units: list[WorkUnit]) -> None:
        """Start units, no more than are free."""
        for unit in units:
            hand = next((w for w in self.workers.values() if w.unit is None), None) or self._start_worker()
            hand.unit = unit
            hand.lane = self.report.open_lane(hand.number, unit.label) or Reporter()
            with suppress(OSError):  # it has just died: `poll` will tell
                hand.pipe.send((unit.stage, unit.log.absolute()))

    def poll(self, seconds: float) -> list[tuple[WorkUnit, UnitOutcome]]:
        """What has ended, waiting up to `seconds` for something to happen."""
        found = []
        busy = {w.pipe: w for w in self.workers.values()}
        for pipe in wait(list(busy), seconds):
            hand = busy[pipe]
            try:
                message = pipe.recv()
            except (EOFError, OSError):
                found += self._drop_dead_worker(hand)
                continue
            if isinstance(message, UnitOutcome):
                found.append((hand.unit, message))
                hand.unit = None
                hand.lane.__exit__(None, None, None)
            else:
                name, arguments, keywords = message
                getattr(hand.lane, name)(*arguments, **keywords)
        return found

    def close(self) -> None:
        """No worker outlives this."""
        for hand in self.workers.values():
            kill_worker(hand.process)
        self.workers.clear()

    def _start_worker(self) -> PoolWorker:
        number = next(i for i in range(self.size) if i not in self.workers)
        here, there = SPAWN_CONTEXT.Pipe()
        gpu = self.gpus[number % len(self.gpus)] if self.gpus else None
        process = SPAWN_CONTEXT.Process(
            target=serve_units,
            daemon=False,
            name=f"worker {number}",
            args=(there, self.root, self.runner, self.threads, gpu),
        )
        process.start()
        there.close()
        self.workers[number] = PoolWorker(number, process, here)
        return self.workers[number]

    def _drop_dead_worker(self, hand: PoolWorker) -> list[tuple[WorkUnit, UnitOutcome]]:
        kill_worker(hand.process)  # the children that it has left
        code = hand.process.exitcode
        del self.workers[hand.number]
        hand.lane.__exit__(RuntimeError, None, None)
        why = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return [(hand.unit, UnitOutcome("died", f"its worker ended by {why}"))] if hand.unit else []


def kill_worker(process: BaseProcess) -> None:
    """End a worker and its children."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # gone, or so young that it leads no group yet
        process.kill()
    process.join()


def serve_units(
    pipe: Connection, root: Path, runner: Callable[[str], StageRunner], threads: int | None, gpu: str | None
) -> None:
    """A worker's life: units from the pipe until it closes."""
    os.setpgid(0, 0)
    end_with_parent(lambda: os.killpg(0, signal.SIGKILL))  # its children too
    worker.set_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    store = Store(root, runner=runner)

    def send(name: str, *arguments: object, **keywords: object) -> None:
        pipe.send((name, arguments, keywords))

    while True:
        try:
            stage, log = pipe.recv()
        except EOFError:
            return
        pipe.send(worker.run_unit(stage, log, store, False, send))
