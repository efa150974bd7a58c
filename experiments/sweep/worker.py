"""What happens in a worker, a process of the pool or a Slurm job: one unit, its output in the unit's log."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console

from compressors.command_line import describe_os_error
from compressors.errors import UsageError
from experiments.runtime.progress import PlainReporter, Reporter
from experiments.runtime.relay import RelayReporter, ReporterMessage
from experiments.store.plan import Stage
from experiments.store.store import StageBusy, StageFailed, StageRunner, Store

STEP_REPORT_SECONDS = 0.2  # seconds between two reports of steps: a pipe that is full stops the worker
LOG_COLUMNS = 200


@dataclass(frozen=True)
class UnitOutcome:
    """How a unit ended. `kind`: done, busy (another sweep computes it), failed, usage (bad input), disk, died
    (no answer came). `text`: one line; `errno`: of a disk's error, which tells a full one."""

    kind: str
    text: str = ""
    errno: int | None = None


class WorkerReporter(Reporter):
    """Lines to the unit's log; stages, steps and warnings also to whoever watches, through `relay`."""

    def __init__(self, log: Reporter, relay: Reporter):
        self.log = log
        self.relay = relay
        self._unsent_steps = 0
        self._sent_at = 0.0

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.log.__exit__(kind, error, trace)

    def begin_stage(self, label: str) -> None:
        self._unsent_steps = 0  # of the stage before
        self.log.begin_stage(label)
        self.relay.begin_stage(label)

    def announce_steps(self, total: int, done: int = 0) -> None:
        self.log.announce_steps(total, done)
        self.relay.announce_steps(total, done)

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self.log.advance_steps(n, **fields)
        self._unsent_steps += n
        # fields are rare and are shown beside the bar; steps may be a thousand a second
        if fields or time.monotonic() - self._sent_at > STEP_REPORT_SECONDS:
            self.relay.advance_steps(self._unsent_steps, **fields)
            self._unsent_steps = 0
            self._sent_at = time.monotonic()

    def write_note(self, text: str) -> None:
        self.log.write_note(text)

    def write_warning(self, text: str) -> None:
        self.log.write_warning(text)
        self.relay.write_warning(text)


def set_threads(threads: int | None) -> None:
    """How many threads torch takes, here and in processes that are started from here."""
    if threads is None:
        return
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["MKL_NUM_THREADS"] = str(threads)
    torch: Any = sys.modules.get("torch")  # a script that imports it is run in each worker before this
    if torch is not None:
        torch.set_num_threads(threads)


@contextmanager
def log_output(path: Path) -> Iterator[None]:
    """Everything that this process and its children print goes to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    screen_out = os.dup(1)
    screen_err = os.dup(2)
    try:
        with open(path, "ab") as file:
            redirect_output(file.fileno(), file.fileno())
        yield
    finally:
        redirect_output(screen_out, screen_err)
        os.close(screen_out)
        os.close(screen_err)


def redirect_output(out: int, err: int) -> None:
    """Let standard output and standard error go to these files, given by their descriptors."""
    # by descriptor, since libraries and child processes do not write through sys.stdout
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk stops what is computed; a lost line of a log does not
            stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def compute_unit(stage: Stage, store: Store, wait: bool) -> UnitOutcome:
    """Compute a stage; nothing but an interruption is raised."""
    try:
        with store.report:
            store.compute(stage, wait)
        return UnitOutcome("done")
    except StageBusy as busy:
        return UnitOutcome("busy", str(busy))
    except StageFailed as error:
        sys.stderr.write(error.format_trace())
        return UnitOutcome("failed", str(error))
    except UsageError as error:
        return UnitOutcome("usage", str(error))
    except OSError as error:
        return UnitOutcome("disk", describe_os_error(error), error.errno)


def run_unit(
    stage: Stage,
    log: Path,
    store: Store,
    wait: bool,
    send: Callable[[ReporterMessage], object] | None = None,
) -> UnitOutcome:
    """`compute_unit` with its log. `wait`: for a stage that another process computes; `send`: takes the
    messages of its progress, None where nobody watches."""
    with log_output(log):
        console = Console(file=sys.stdout, width=LOG_COLUMNS)
        relay = RelayReporter(send) if send is not None else Reporter()
        store.report = WorkerReporter(PlainReporter(console), relay)
        return compute_unit(stage, store, wait)


def run_slurm_job(
    stage: Stage, log: Path, root: Path, runner: Callable[[str], StageRunner], threads: int | None
) -> UnitOutcome:
    """A unit as a job of its own, on another machine perhaps: nobody watches, and it waits for locks."""
    set_threads(threads)
    store = Store(root, runner=runner)
    with store.open_root():  # the command that has submitted it may have gone: nothing is cleared meanwhile
        # no other job of this sweep has the stage, but another sweep may: its result will do
        return run_unit(stage, log, store, wait=True)
