"""kill -9 at random moments of whole sweeps, with one worker and with two; every stage is hit.

    PYTHONPATH=.:tests/helpers python tests/stress/kill.py kills=100
    PYTHONPATH=.:tests/helpers python tests/stress/kill.py kills=30 sweep=readme    # an hour

After its kills a sweep runs to its end: tables, cells and weights are byte for byte those of a sweep that
nobody disturbed, what had finished is as it was, and nothing is left of what was under way.
"""

import math
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sweeps
from sweeps import Undisturbed
from trials import Kind, Trial, TrialOptions, run_program

from compressors.command_line import Command, CommandLine
from compressors.setting_fields import setting

LONGER = 5.0  # times as long as it may take undisturbed, with its kills
NEAR = 0.05  # seconds around a stage: the lock before it, the rename behind it


@dataclass(frozen=True)
class KillOptions(TrialOptions):
    """How long, and which moments."""

    kills: int = setting(36, "at least so many, 36 in two sweeps", low=1)
    sweep: str = setting("small", "of seconds, or the README's own", choices=tuple(sweeps.SWEEPS))


COMMAND = Command("python tests/stress/kill.py [KEY=VALUE ...]", __doc__ or "", KillOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 1 for a failure."""
    return COMMAND.run(run_kills, arguments)


def run_kills(line: CommandLine) -> int:
    """Kill sweeps and say what happened."""
    options: KillOptions = line.options
    with tempfile.TemporaryDirectory(prefix="slothkit-kill-") as place:
        kinds = make_kinds(sweeps.run_undisturbed(Path(place), options.sweep))
        chosen = sweeps.SWEEPS[options.sweep]
        rounds = math.ceil(options.kills / sum(chosen.kills.values()))
        longest = LONGER * chosen.longest
        return run_program(kinds, options, rounds * len(kinds), longest, "kills")


def make_kinds(undisturbed: Undisturbed) -> dict[str, Kind]:
    """Sweeps with one worker and with two."""
    kinds: dict[str, Kind] = {}
    for workers in sweeps.SWEEPS[undisturbed.name].kills:
        kinds[f"sweeps with {workers} workers"] = partial(draw_kills, undisturbed, workers)
    return kinds


def draw_kills(undisturbed: Undisturbed, workers: int, draw: random.Random, folder: Path) -> Trial:
    """The moments: a stage, and how long after its begin. In the order of the stages, so that each hits one
    under way."""
    stages = list(undisturbed.seconds)
    chosen = sweeps.SWEEPS[undisturbed.name]
    numbers = sorted(draw.randrange(len(stages)) for _ in range(chosen.kills[workers]))
    moments = []
    for number in numbers:
        seconds = chosen.reach * undisturbed.seconds[stages[number]]
        moments.append((stages[number], draw.uniform(0, seconds + NEAR)))
    text = ", ".join(f"{stage} +{delay:.3f} s" for stage, delay in moments)
    return Trial(text, partial(disturb, undisturbed, workers, moments, folder / "out"))


def disturb(undisturbed: Undisturbed, workers: int, moments: Sequence[tuple[str, float]], out: Path) -> int:
    """Kill the sweep at each moment, then let it end; how many kills it was not too quick for."""
    kills = 0
    chosen = sweeps.SWEEPS[undisturbed.name]
    notes: dict[Path, bytes] = {}
    for stage, delay in moments:
        running = sweeps.start_sweep(out, workers, undisturbed.name)
        wait_for_stage(running, out / stage, chosen.longest)
        running.process.join(delay)
        sweeps.kill(running)
        kills += running.process.exitcode == -signal.SIGKILL
        assert_notes_stayed(notes)
        notes = sweeps.collect_notes(out)
    ended = sweeps.finish_sweep(out, undisturbed.name)
    assert ended.code == 0, f"exit code {ended.code}: {ended.error[-300:]}"
    assert_notes_stayed(notes)
    leftovers = sweeps.list_leftovers(out)
    assert not leftovers, f"left: {leftovers}"
    assert_same_results(sweeps.collect_tables(out), undisturbed.tables)
    assert_same_results(sweeps.collect_weights(out), undisturbed.weights)
    return kills


def assert_notes_stayed(notes: dict[Path, bytes]) -> None:
    """What had finished was not computed again."""
    for path, note in notes.items():
        assert path.read_bytes() == note, f"{path} was computed again"


def wait_for_stage(running: sweeps.Running, stage: Path, longest: float) -> None:
    """Until a stage is under way or over, or the sweep is."""
    deadline = time.monotonic() + longest
    places = stage, stage.with_name(f"{stage.name}.partial"), stage.with_name(f"{stage.name}.lock")
    while running.process.is_alive() and not any(place.exists() for place in places):
        assert time.monotonic() < deadline, f"{stage.name} does not begin"
        time.sleep(0.002)


def assert_same_results(results: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    """Byte for byte; the first file that differs is named."""
    for name in sorted(results.keys() | wanted.keys()):
        assert results.get(name) == wanted.get(name), f"{name} is not that of an undisturbed sweep"


if __name__ == "__main__":
    sys.exit(main())
