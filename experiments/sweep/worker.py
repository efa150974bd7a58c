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
from experiments.store.store import Busy, Runner, StageFailed, Store

Send = Callable[..., None]  # (name of a Reporter's method, its arguments)
EVERY = 0.2  # seconds between two reports of steps


@dataclass(frozen=True)
class Outcome:
    """How a unit ended. `kind`: done, busy (another sweep computes it), failed, usage (bad input), disk, died
    (no answer came). `text`: one line; `key`: the stage that failed."""

    kind: str
    text: str = ""
    key: str = ""


class Sender(Reporter):
    """Lines to the unit's log, and stages and steps to whoever watches."""

    def __init__(self, log: Reporter, send: Send):
        self.log, self.send = log, send
        self._steps, self._sent = 0, 0.0

    def __exit__(self, *error: object) -> None:
        self.log.__exit__(*error)

    def stage(self, label: str) -> None:
        self._steps = 0
        self.log.stage(label)
        self.send("stage", label)

    def steps(self, total: int, done: int = 0) -> None:
        self.log.steps(total, done)
        self.send("steps", total, done)

    def advance(self, n: int = 1, **fields: object) -> None:
        self.log.advance(n, **fields)
        self._steps += n
        if fields or time.monotonic() - self._sent > EVERY:
            self.send("advance", self._steps, **fields)
            self._steps, self._sent = 0, time.monotonic()

    def note(self, text: str) -> None:
        self.log.note(text)

    def warn(self, text: str) -> None:
        self.log.warn(text)
        self.send("warn", text)


def set_threads(threads: int | None) -> None:
    """How many threads torch takes; to be said before it is imported."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Everything that this process and its children print goes to the end of a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.dup(1), os.dup(2)
    try:
        with open(path, "ab") as file:
            point(file.fileno(), file.fileno())
        yield
    finally:
        point(*before)
        os.close(before[0])
        os.close(before[1])


def point(out: int, err: int) -> None:
    """Let standard output and standard error go to these files."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a full disk stops what is computed; a lost line of a log does not
            stream.flush()
    os.dup2(out, 1)
    os.dup2(err, 2)


def work(stage: Stage, store: Store, wait: bool) -> Outcome:
    """Compute a stage; nothing but an interruption is raised."""
    try:
        with store.report:
            store.compute(stage, wait)
        return Outcome("done")
    except Busy as busy:
        return Outcome("busy", str(busy))
    except StageFailed as error:
        sys.stderr.write(error.trace())
        return Outcome("failed", str(error), error.stage.key)
    except UsageError as error:
        return Outcome("usage", str(error))
    except OSError as error:
        return Outcome("disk", describe_os_error(error))


def run(stage: Stage, log: Path, store: Store, wait: bool, send: Send) -> Outcome:
    """`work` with its log."""
    with logged(log):
        console = Console(file=sys.stdout, width=200)
        store.report = Sender(PlainReporter(console), send)
        return work(stage, store, wait)


def job(stage: Stage, log: Path, root: Path, runner: Callable[[str], Runner], threads: int | None) -> Outcome:
    """A unit as a job of its own, on another machine perhaps: nobody watches, and it waits for locks."""
    set_threads(threads)
    return run(stage, log, Store(root, runner=runner), True, lambda *_, **__: None)
