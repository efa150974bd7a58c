"""Whole sweeps of seconds over the embedded backbones, each in a process group of its own."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fakes import children
from trials import FORK, kill_group, lead_group

from experiments.stages import evaluate, features, train  # noqa: F401  so that no child has to
from experiments.sweep import __main__ as sweep

SMALL = (
    "compressor=sap+embq,avg_pool",
    "data.scale=0.0001",
    "evaluate.limit=8",
    "trainer.accelerator=cpu",
    "trainer.checkpoint_every=1",
    *(f"{stage}.batch_size=4" for stage in ("pretrain", "finetune")),
    *(f"{stage}.max_steps=4" for stage in ("pretrain", "finetune")),
    *(f"{stage}.epochs=4" for stage in ("pretrain", "finetune")),
)


class SweepKind(NamedTuple):
    """Settings of a sweep, its seconds at the longest on a machine that does other things as well, workers'
    imports included, and kills of one sweep by its number of workers."""

    settings: tuple[str, ...]
    longest: float
    kills: dict[int, int]
    reach: float  # share of a stage's seconds within which it is killed; below 1 few kills find it finished


SWEEPS = {
    # workers of a pool import everything after each kill
    "small": SweepKind(SMALL, 240.0, {1: 30, 2: 6}, 1.0),
    "short": SweepKind(SMALL, 240.0, {1: 10}, 1.0),  # of few kills, for a test
    "readme": SweepKind(("compressor=sap+embq",), 7200.0, {1: 36}, 0.25),
}


class Ended(NamedTuple):
    """How a command ended."""

    code: int | None  # None: it was stopped, it took too long
    screen: str
    error: str


class Running(NamedTuple):
    """A command in a process group of its own."""

    process: FORK.Process
    streams: tuple[Path, Path]

    def wait(self, seconds: float) -> Ended:
        """Until it has ended, by itself or stopped."""
        self.process.join(seconds)
        code = self.process.exitcode
        kill_group(self.process.pid)
        self.process.join()
        screen, error = (path.read_text(errors="replace") for path in self.streams)
        return Ended(code, screen, error)


def start(folder: Path, main: Callable[..., int], arguments: list[str]) -> Running:
    """Start a command; its streams go to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    streams = folder / "screen.txt", folder / "error.txt"
    process = FORK.Process(target=become_command, args=(streams, main, arguments))
    process.start()
    return Running(process, streams)


def become_command(streams: tuple[Path, Path], main: Callable[..., int], arguments: list[str]) -> None:
    """A child's life: what a shell would start."""
    lead_group()
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    # a test's or a trial's own streams are not those of the process
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  they live as long as the process
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start_sweep(out: Path, workers: int = 1, name: str = "small") -> Running:
    """Start one of SWEEPS."""
    arguments = [f"out={out}", f"launch.workers={workers}", *SWEEPS[name].settings]
    return start(out.parent / "streams", sweep.main, arguments)


def finish_sweep(out: Path, name: str = "small") -> Ended:
    """One of SWEEPS from where it stands to its end."""
    return start_sweep(out, name=name).wait(SWEEPS[name].longest)


def kill(running: Running) -> None:
    """kill -9 of the group, and wait until its workers, which lead groups of their own, have gone too."""
    workers = children(running.process.pid)
    kill_group(running.process.pid)
    running.process.join()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < deadline, f"workers outlive their command: {workers}"
        time.sleep(0.02)


def collect_tables(out: Path) -> dict[str, bytes]:
    """Tables and cells. A cell's settings name `out`, so they differ."""
    paths = [*out.glob("table.*"), *out.glob("cells/*/*.json*")]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def collect_weights(out: Path) -> dict[str, bytes]:
    """What the training stages end with."""
    paths = out.glob("*/*/**/*.safetensors")
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def collect_notes(out: Path) -> dict[Path, bytes]:
    """done.json of all stages that have finished."""
    paths = [path for path in out.glob("*/*/done.json") if path.parent.suffix != ".partial"]
    return {path: path.read_bytes() for path in paths}


def list_leftovers(out: Path) -> list[str]:
    """Files that belong to a sweep under way."""
    names = [str(path.relative_to(out)) for path in out.rglob("*")]
    return [name for name in names if name.endswith((".lock", ".partial", ".draft", ".part", ".tmp"))]


@dataclass(frozen=True)
class Undisturbed:
    """A sweep that nobody disturbed: which of SWEEPS, where it lies, its results, and seconds of each of its
    stages, in the order in which they finished."""

    name: str
    out: Path
    tables: dict[str, bytes]
    weights: dict[str, bytes]
    seconds: dict[str, float]


def run_undisturbed(folder: Path, name: str = "small") -> Undisturbed:
    """The sweep that others are held against."""
    out = folder / "undisturbed"
    ended = finish_sweep(out, name)
    assert ended.code == 0, ended.error
    seconds = {}
    notes = collect_notes(out)
    for path in sorted(notes, key=lambda path: path.stat().st_mtime_ns):
        note = notes[path]
        seconds[path.parent.relative_to(out).as_posix()] = json.loads(note)["seconds"]
    return Undisturbed(name, out, collect_tables(out), collect_weights(out), seconds)
