"""Trials under a watcher. Each runs in a child process: one that hangs or dies is a failure like any other.

for result in run_trials(kinds, range(1000), seed=0, folder=place): ...
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import track

from compressors.setting_fields import setting
from experiments.runtime.processes import end_with_parent

FORK = multiprocessing.get_context("fork")  # the child has everything imported
LONGEST = 20.0  # seconds after which a trial counts as one that hangs
ROOT = Path(__file__).parents[2]
OWN_FOLDERS = ("compressors", "connectors", "llm_adapters", "experiments", "ablations")
SHOWN_INPUT = 300  # characters of an input in the summary
SHOWN_KINDS = 30  # kinds that are counted by name


@dataclass(frozen=True)
class TrialOptions:
    """Settings of every program: how long, and which trials."""

    seconds: float | None = setting(None, "stop after so long", above=0)
    seed: int = setting(0, "of what is drawn")
    only: int | None = setting(None, "one trial by its number")


class Trial(NamedTuple):
    """One input in words, and how it is tried: `attempt` raises for a failure, and may say how many events it
    had."""

    text: str
    attempt: Callable[[], int | None]


Kind = Callable[[random.Random, Path], Trial]  # draws a trial; the folder is its own, and empty


class Result(NamedTuple):
    """How a trial ended; `reason` is empty where it passed, `place` is where the project raised, `events` are
    what the trial counted."""

    number: int
    kind: str
    text: str = ""
    reason: str = ""
    place: str = ""
    events: int = 0


def draw_kind(kinds: dict[str, Kind], number: int) -> str:
    """Kinds in turn, so that each number always has the same."""
    return list(kinds)[number % len(kinds)]


def run_trials(
    kinds: dict[str, Kind], numbers: Iterable[int], seed: int, folder: Path, longest: float = LONGEST
) -> Iterator[Result]:
    """Each trial's result, in order. The same number and seed draw the same input."""
    waiting = list(numbers)
    while waiting:
        pipe, end = FORK.Pipe()
        child = FORK.Process(target=serve_trials, args=(end, kinds, waiting, seed, folder))
        child.start()
        end.close()
        try:
            while waiting:
                result = receive_result(pipe, child, longest)._replace(
                    number=waiting[0], kind=draw_kind(kinds, waiting[0])
                )
                waiting.pop(0)
                yield result
                if result.place == "watcher":  # the child is gone; the next one takes the rest
                    break
        finally:
            kill_group(child.pid)
            child.join()


def receive_result(pipe, child, longest: float) -> Result:
    """What the child says of a trial, or that it said nothing in time."""
    text = ""
    while True:
        try:
            # drawing an input comes first, and its words are told before it is tried
            if not pipe.poll(longest):
                return Result(0, "", text, f"hangs for more than {longest:.0f} s", "watcher")
            message = json.loads(pipe.recv())
        except (EOFError, OSError):
            child.join(5)
            return Result(0, "", text, f"process ended with {child.exitcode}", "watcher")
        text = message["text"]
        if "reason" in message:
            return Result(0, "", **message)


def kill_group(pid: int | None) -> None:
    """kill -9 of a child and of all that it started."""
    try:
        os.killpg(pid or 0, signal.SIGKILL)
    except ProcessLookupError:  # so young that it leads no group, or gone
        return


def serve_trials(pipe, kinds: dict[str, Kind], numbers: Sequence[int], seed: int, folder: Path) -> None:
    """A child's life."""
    lead_group()
    silence_streams(folder / "screen.txt")
    for number in numbers:
        kind = draw_kind(kinds, number)
        place = Path(tempfile.mkdtemp(prefix="trial-", dir=folder))
        os.chdir(place)
        message: dict[str, Any] = {"text": ""}
        try:
            trial = kinds[kind](random.Random(f"{seed} {number}"), place)
            message["text"] = trial.text
            pipe.send(json.dumps(message))
            message["events"] = trial.attempt() or 0
            message["reason"] = ""
        except BaseException as error:  # whatever comes out is what is looked for
            message |= {"reason": describe_error(error), "place": find_place(error)}
        pipe.send(json.dumps(message))
        os.chdir(folder)
        shutil.rmtree(place, ignore_errors=True)


def lead_group() -> None:
    """Be killed with all that this process starts, at the latest when the one that started it ends."""
    os.setpgid(0, 0)
    end_with_parent(lambda: os.killpg(0, signal.SIGKILL))


def silence_streams(path: Path) -> None:
    """What libraries write past Python's streams goes to a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)


def describe_error(error: BaseException) -> str:
    """An exception's type and message, as one line."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    return words[:SHOWN_INPUT]


def find_place(error: BaseException) -> str:
    """The last line of the project that an exception came through."""
    place = "elsewhere"
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in OWN_FOLDERS:
            place = f"{path.relative_to(ROOT)}:{frame.lineno} {frame.name}"
    return place


@dataclass
class Summary:
    """What was tried and what failed, failures of one cause together."""

    counts: Counter = field(default_factory=Counter)
    events: int = 0
    failures: dict[tuple, list[Result]] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def add_result(self, result: Result) -> None:
        """Count a result."""
        self.counts[result.kind] += 1
        self.events += result.events
        if result.reason:
            # messages of one cause differ in the values that they name
            cause = result.place, result.reason.partition(":")[0]
            if result.place == "elsewhere":
                cause = result.kind, result.reason[:100]
            self.failures.setdefault(cause, []).append(result)

    def describe(self, seed: int, counted: str = "") -> str:
        """All kinds and counts, then of each cause the smallest input and the number that repeats it.
        `counted`: what the events of trials are."""
        seconds = time.monotonic() - self.started
        kinds = f"{len(self.counts)} kinds"
        if len(self.counts) <= SHOWN_KINDS:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.counts.items())
        failed = sum(map(len, self.failures.values()))
        total = sum(self.counts.values())
        trials = f"{total} trials"
        if counted:
            trials += f" with {self.events} {counted}"
        lines = [f"{trials} in {seconds:.0f} s, {failed} failed: {kinds}"]
        for results in self.failures.values():
            smallest = min(results, key=lambda result: len(result.text))
            lines.append(f"FAILED {len(results)} x {smallest.kind}, at {smallest.place}")
            lines.append(f"  {smallest.reason}")
            lines.append(f"  input: {smallest.text[:SHOWN_INPUT]}")
            lines.append(f"  again: seed={seed} only={smallest.number}")
        return "\n".join(lines) + "\n"


def run_program(
    kinds: dict[str, Kind], options: TrialOptions, count: int, longest: float = LONGEST, counted: str = ""
) -> int:
    """Run so many trials, or for so long, under a bar; the exit code. `counted`: what their events are."""
    numbers: Sequence[int] = range(count) if options.only is None else [options.only]
    summary = Summary()
    with tempfile.TemporaryDirectory(prefix="slothkit-stress-", ignore_cleanup_errors=True) as place:
        results = run_trials(kinds, numbers, options.seed, Path(place), longest)
        bar = track(results, "trials", len(numbers), console=Console(stderr=True))
        try:
            for result in bar:
                summary.add_result(result)
                if options.seconds is not None and time.monotonic() - summary.started > options.seconds:
                    break
        finally:  # after Ctrl-C as well
            results.close()
            sys.stdout.write(summary.describe(options.seed, counted))
    return 1 if summary.failures else 0
