"""What happens in a worker, a process of the pool or a Slurm job: one unit, its output in the unit's log."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from compressors.command_line import describe_os_error
from compressors.errors import UsageError
from experiments.runtime.progress import PlainReporter, Reporter
from experiments.store.plan import Stage
from experiments.store.store import StageBusy, StageFailed, StageRunner, Store

SendFunction = Callable[..., None]  # (name of a Reporter's method, its arguments)
STEP_REPORT_SECONDS = 0.2  # seconds between two reports of steps


@dataclass(frozen=True)
class UnitOutcome:
    """How a unit ended. `kind`: done, busy (another sweep computes it), failed, usage (bad input), disk, died
    (no answer came). `text`: one line; `key`: the stage that failed."""

    kind: str
    text: str = ""
    key: str = ""


class SendingReporter(Reporter):
    """Lines to the unit's log, and stages and steps to whoever watches."""

    def __init__(self, log: Reporter, send: SendFunction):
        self.log, self.send = log, send
        self._steps, self._sent = 0, 0.0

    def __exit__(self, *error: object) -> None:
        self.log.__exit__(*error)

    def begin_stage(self, label: str) -> None:
        self._steps = 0
        self.log.begin_stage(label)
        self.send("begin_stage", label)

    def announce_steps(self, total: int, done: int = 0) -> None:
        self.log.announce_steps(total, done)
        self.send("announce_steps", total, done)

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self.log.advance_steps(n, **fields)
        self._steps += n
        if fields or time.monotonic() - self._sent > STEP_REPORT_SECONDS:
            self.send("advance_steps", self._steps, **fields)
            self._steps, self._sent = 0, time.monotonic()

    def write_note(self, text: str) -> None:
        self.log.write_note(text)

    def write_warning(self, text: str) -> None:
        self.log.write_warning(text)
        self.send("write_warning", text)


def set_threads(threads: int | None) -> None:
    """How many threads torch takes; to be said before it is imported."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


@contextmanager
def log_output(path: Path) -> Iterator[None]:
    """Everything that this process and its children print goes to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(1), os.dup(2)
    try:
        with open(path, "ab") as file:
            redirect_output(file.fileno(), file.fileno())
        yield
    finally:
        redirect_output(*before)
        os.close(before[0])
        os.close(before[1])


def redirect_output(out: int, err: int) -> None:
    """Let standard output and standard error go to these files."""
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
        return UnitOutcome("failed", str(error), error.stage.key)
    except UsageError as error:
        return UnitOutcome("usage", str(error))
    except OSError as error:
        return UnitOutcome("disk", describe_os_error(error))


def run_unit(stage: Stage, log: Path, store: Store, wait: bool, send: SendFunction) -> UnitOutcome:
    """`compute_unit` with its log."""
    with log_output(log):
        console = Console(file=sys.stdout, width=200)
        store.report = SendingReporter(PlainReporter(console), send)
        return compute_unit(stage, store, wait)


def run_slurm_job(
    stage: Stage, log: Path, root: Path, runner: Callable[[str], StageRunner], threads: int | None
) -> UnitOutcome:
    """A unit as a job of its own, on another machine perhaps: nobody watches, and it waits for locks."""
    set_threads(threads)
    return run_unit(stage, log, Store(root, runner=runner), True, lambda *_, **__: None)
