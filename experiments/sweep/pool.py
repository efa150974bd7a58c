"""Worker processes of this machine.

Each is started afresh (never forked: torch and CUDA do not survive that), leads a process group of its own,
and ends with its children when the command that started it ends, however that ends.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Literal

from experiments.runtime.processes import end_with_parent
from experiments.runtime.processor import count_cores
from experiments.runtime.progress import Reporter
from experiments.runtime.relay import play_message
from experiments.store.store import StageRunner, Store
from experiments.sweep import worker
from experiments.sweep.launcher import EndedUnit, Launcher
from experiments.sweep.units import WorkUnit
from experiments.sweep.worker import UnitOutcome

SPAWN_CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class PoolWorker:
    """One process and what it is doing. `number` picks its GPU."""

    number: int
    process: SpawnProcess
    pipe: Connection
    unit: WorkUnit | None = None
    lane: Reporter = field(default_factory=Reporter)


class ProcessPool(Launcher):
    """Up to `size` workers; one that dies is replaced when there is something to do."""

    def __init__(
        self,
        root: Path,
        runner: Callable[[str], StageRunner],
        report: Reporter,
        workers: int | Literal["auto"],
        threads: int | None,
        uses_gpu: bool,
    ):
        self.root = Path(root).absolute()
        self.runner = runner
        self.report = report
        self.gpus = list_gpus(uses_gpu)
        if workers == "auto":
            workers = len(self.gpus) or count_cores()
        self.size = workers
        if threads is None and self.gpus:
            threads = max(1, count_cores() // self.size)
        # on the CPU one: the last bits of a result depend on it, and it must not depend on the machine
        self.threads = threads or 1
        self.workers: dict[int, PoolWorker] = {}

    @property
    def free(self) -> int:
        return self.size - sum(hand.unit is not None for hand in self.workers.values())

    def submit(self, units: list[WorkUnit]) -> None:
        for unit in units:
            # a worker that is there has imported torch already
            hand = self._find_idle_worker() or self._start_worker()
            hand.unit = unit
            hand.lane = self.report.open_lane(hand.number, unit.label)
            with suppress(OSError):  # it has just died: `poll` will tell
                hand.pipe.send((unit.stage, unit.log.absolute()))

    def poll(self, seconds: float) -> list[EndedUnit]:
        ended: list[EndedUnit] = []
        hands = list(self.workers.values())
        ready_pipes = wait([hand.pipe for hand in hands], seconds)
        for hand in hands:
            if hand.pipe not in ready_pipes:
                continue
            try:
                message = hand.pipe.recv()
            except (EOFError, OSError):
                outcome = self._bury_worker(hand)
                if hand.unit is not None:
                    ended.append((hand.unit, outcome))
                continue
            if not isinstance(message, UnitOutcome):
                play_message(message, hand.lane)
                continue
            assert hand.unit is not None  # a worker answers only what it was sent
            ended.append((hand.unit, message))
            hand.unit = None
            hand.lane.__exit__(None, None, None)
        return ended

    def close(self) -> None:
        for hand in self.workers.values():
            kill_worker(hand.process)
        self.workers.clear()

    def _find_idle_worker(self) -> PoolWorker | None:
        for hand in self.workers.values():
            if hand.unit is None:
                return hand
        return None

    def _start_worker(self) -> PoolWorker:
        number = next(i for i in range(self.size) if i not in self.workers)
        our_end, their_end = SPAWN_CONTEXT.Pipe()
        gpu = None
        if self.gpus:
            gpu = self.gpus[number % len(self.gpus)]
        process = SPAWN_CONTEXT.Process(
            target=serve_units,
            daemon=False,  # a daemon may have no children, and data loaders are some
            name=f"worker {number}",
            args=(their_end, self.root, self.runner, self.threads, gpu),
        )
        process.start()
        their_end.close()  # else a worker that dies would leave the pipe open
        self.workers[number] = PoolWorker(number, process, our_end)
        return self.workers[number]

    def _bury_worker(self, hand: PoolWorker) -> UnitOutcome:
        """Forget a worker that has died; how its unit ended."""
        kill_worker(hand.process)  # the children that it has left
        code = hand.process.exitcode
        del self.workers[hand.number]
        hand.lane.__exit__(RuntimeError, None, None)
        cause = f"exit code {code}"
        if code is not None and code < 0:  # as multiprocessing tells of signals
            cause = f"signal {-code}"
        return UnitOutcome("died", f"its worker ended by {cause}")


def kill_worker(process: SpawnProcess) -> None:
    """End a worker and its children."""
    assert process.pid is not None  # every worker is started when it is made
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # gone, or so young that it leads no group yet
        process.kill()
    process.join()


def serve_units(
    pipe: Connection, root: Path, runner: Callable[[str], StageRunner], threads: int | None, gpu: str | None
) -> None:
    """A worker's life: units from the pipe until it closes."""
    os.setpgid(0, 0)  # so that data loaders can be ended with it
    end_with_parent(lambda: os.killpg(0, signal.SIGKILL))  # its children too
    worker.set_threads(threads)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    store = Store(root, runner=runner)
    while True:
        try:
            stage, log = pipe.recv()
        except EOFError:
            return
        pipe.send(worker.run_unit(stage, log, store, wait=False, send=pipe.send))


def list_gpus(wanted: bool = True) -> list[str]:
    """The GPUs that workers share out, as CUDA_VISIBLE_DEVICES names them. Imports torch only where there may
    be one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not wanted or visible == "" or shutil.which("nvidia-smi") is None:
        return []
    import torch

    count = torch.cuda.device_count()
    if visible is None:
        return list(map(str, range(count)))
    return visible.split(",")[:count]
