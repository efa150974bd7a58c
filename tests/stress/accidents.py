"""A sweep whose stages compute nothing, and what may happen to it.

    PYTHONPATH=.:tests/helpers python tests/stress/accidents.py moments=20

At every moment something happens to it: kill -9 of the command, of a worker or of one of two commands in the
same directory, a full disk, a file that is cut short, changed or deleted. In the end the table is that of a
sweep that nobody disturbed, byte for byte; what was finished stayed; no step was computed twice without
need.
"""

import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from fakes import children, read_log, spawn, table

from compressors.command_line import Command, CommandLine
from compressors.setting_fields import setting

CELLS = ("compressor=sap,sap+embq,avg_pool", "seed=0,1")
STAGES, STEPS = 21, 10  # of CELLS, of a stage
SLOW, TOGETHER = 0.6, 2  # seconds of a stage; workers
EVENTS = ("kill", "kill a worker", "kill one of two", "fill the disk", "harm a file")


class Stress:
    """One output directory and what has happened to it."""

    def __init__(self, folder: Path, seed: int):
        self.out, self.log, self.random = folder / "out", folder / "log", random.Random(seed)
        self.notes: dict[Path, bytes] = {}  # done.json of all stages ever seen finished
        self.harmed: set[Path] = set()
        self.spare = 0  # steps that may have been computed twice
        self.happened: list[str] = []

    def start(self, workers: int = TOGETHER, **keywords) -> subprocess.Popen:
        return spawn(
            self.out,
            self.log,
            SLOW,
            *CELLS,
            f"launch.workers={workers}",
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **keywords,
        )

    def event(self, name: str) -> None:
        """One thing that happens, at a random moment of a sweep that goes on where the last one stopped."""
        {
            "kill": self.kill,
            "kill a worker": self.kill_a_worker,
            "kill one of two": self.kill_one_of_two,
            "fill the disk": self.fill,
            "harm a file": self.harm,
        }[name]()
        self.happened.append(name)
        self.look()

    def pause(self, longest: float = 1.5) -> None:
        time.sleep(self.random.uniform(0.1, longest))

    def kill(self) -> None:
        process = self.start(self.random.choice([1, TOGETHER]))
        self.pause()
        self.end(process)

    def end(self, process: subprocess.Popen) -> None:
        """kill -9, and wait until its workers have gone, too."""
        workers = children(process.pid)
        process.kill()
        process.communicate()
        self.spare += TOGETHER
        gone(workers)

    def kill_a_worker(self) -> None:
        process = self.start()
        self.pause()
        workers = children(process.pid)
        if workers:
            os.kill(self.random.choice(workers), signal.SIGKILL)
            self.spare += 1
        self.pause()
        self.end(process)

    def kill_one_of_two(self) -> None:
        both = [self.start(), self.start()]
        self.pause()
        self.end(both.pop(self.random.randrange(2)))
        self.pause()
        self.end(both.pop())

    def fill(self) -> None:
        """A limit on file sizes stands for a full disk."""
        size = self.random.randrange(50, 1200)
        process = self.start(
            self.random.choice([1, TOGETHER]),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )
        try:
            screen, error = process.communicate(timeout=60)
        finally:
            self.end(process)
        assert process.returncode in (0, 2), screen + error
        assert process.returncode == 0 or (error.startswith("error: ") and error.count("\n") == 1), error

    def harm(self) -> None:
        """Cut, change or delete a file: of a finished stage, of one under way, of a cell."""
        found = [p for p in self.out.rglob("*") if p.is_file() and p.suffix not in (".lock", ".log")]
        if not found:
            return self.kill()
        path = self.random.choice(found)
        how = self.random.choice(["cut", "change", "delete"])
        if how == "cut":
            os.truncate(path, path.stat().st_size // 2)
        elif how == "change":
            path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
        else:
            path.unlink()
        self.spare += STEPS
        self.harmed |= set(path.parents)
        return None

    def look(self) -> None:
        """What was finished is still there and is the same, unless we have harmed it."""
        for path, content in self.notes.items():
            if path.parent not in self.harmed:
                assert path.is_file() and path.read_bytes() == content, f"{path} was computed again"
        for path in self.out.glob("*/*/done.json"):
            if not path.parent.name.endswith(".partial") and path.parent not in self.harmed:
                self.notes.setdefault(path, path.read_bytes())

    def finish(self) -> dict[str, bytes]:
        process = self.start()
        screen, error = process.communicate(timeout=300)
        assert process.returncode == 0, screen + error
        self.look()
        steps = len(read_log(self.log.with_suffix(".steps")))
        assert steps <= STAGES * STEPS + self.spare, f"{steps} steps, {self.spare} more than needed allowed"
        left = [p for p in self.out.rglob("*") if p.name.endswith((".lock", ".partial", ".draft"))]
        assert not left, left
        return table(self.out)


def gone(pids: list[int]) -> None:
    """Wait for workers to end with their command."""
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end, f"workers outlive their command: {pids}"
        time.sleep(0.02)


def stress(folder: Path, moments: int, seed: int = 0) -> Stress:
    """Disturb a sweep `moments` times; AssertionError if it is not like one that was left alone."""
    alone = Stress(folder / "alone", seed)
    disturbed = Stress(folder / "disturbed", seed)
    for each in (alone, disturbed):
        each.log.parent.mkdir(parents=True)
    for i in range(moments):
        disturbed.event(EVENTS[i % len(EVENTS)])
    assert disturbed.finish() == alone.finish()
    disturbed.event("harm a file")  # of what is finished
    disturbed.harmed.add(disturbed.out)
    assert disturbed.finish() == table(alone.out)
    return disturbed


@dataclass(frozen=True)
class StressOptions:
    """How long, and which accidents."""

    moments: int = setting(20, "how often something happens", low=1)
    seed: int = setting(0, "of what happens when")


COMMAND = Command("python tests/stress/accidents.py [KEY=VALUE ...]", __doc__, StressOptions)


def run_stress(line: CommandLine) -> int:
    """The command: disturb a sweep and say what happened."""
    with tempfile.TemporaryDirectory() as place:
        found = stress(Path(place), line.options.moments, line.options.seed)
        steps = len(read_log(found.log.with_suffix(".steps")))
    sys.stdout.write(
        f"{len(found.happened)} moments: {', '.join(found.happened)}\n"
        f"{steps} steps computed, {STAGES * STEPS} needed; the table is the undisturbed one\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(COMMAND.run(run_stress))
