"""Damage to every kind of file below `out=`, of a finished sweep and of one that was killed.

    PYTHONPATH=.:tests/helpers python tests/stress/corrupt.py rounds=1

A file is cut, changed by one bit, emptied, deleted, or a directory, a FIFO or a link stands in its place. The
same sweep again ends with what an undisturbed one does, or with one line that says what is wrong.
"""

import os
import random
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sweeps
from harm import FILE_HARMS, copy_tree, harm_file
from kill import assert_same_results, wait_for_stage
from sweeps import Ended, Undisturbed
from trials import Kind, Trial, TrialOptions, run_program

from compressors.command_line import Command, CommandLine
from compressors.setting_fields import setting
from experiments import chat
from experiments.sweep import __main__ as sweep

KEY = re.compile("[0-9a-f]{8,}")
HANGS = 120.0  # seconds of a command; a sweep computes stages again, at most all of them, on a busy machine
LONGEST = 400.0  # of all commands of a trial


@dataclass(frozen=True)
class CorruptOptions(TrialOptions):
    """How often, and which damages."""

    rounds: int = setting(1, "how often every kind of file gets every kind of damage", low=1)
    inputs: int | None = setting(None, "so many damages instead of whole rounds", low=1)


COMMAND = Command("python tests/stress/corrupt.py [KEY=VALUE ...]", __doc__ or "", CorruptOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 1 for a failure."""
    return COMMAND.run(run_damages, arguments)


def run_damages(line: CommandLine) -> int:
    """Damage files and say what came of it."""
    options: CorruptOptions = line.options
    with tempfile.TemporaryDirectory(prefix="slothkit-corrupt-") as place:
        undisturbed = sweeps.run_undisturbed(Path(place))
        killed = [stop_in_stage(undisturbed, kind, Path(place)) for kind in ("pretrain", "finetune")]
        kinds = make_kinds(undisturbed, [undisturbed.out, *killed])
        count = options.inputs or options.rounds * len(kinds)
        return run_program(kinds, options, count, LONGEST)


def stop_in_stage(undisturbed: Undisturbed, kind: str, folder: Path) -> Path:
    """What a sweep leaves that is killed once the first stage of a kind has written a checkpoint."""
    stage = next(name for name in undisturbed.seconds if name.startswith(kind))
    out = folder / f"killed-in-{kind}" / "out"
    running = sweeps.start_sweep(out)
    wait_for_stage(running, out / stage, sweeps.SWEEPS["small"].longest)
    checkpoint = out / f"{stage}.partial" / "checkpoints" / "last.ckpt"
    while running.process.is_alive() and not checkpoint.exists():
        pass
    sweeps.kill(running)
    assert checkpoint.exists(), "over before it was killed"
    return out


def make_kinds(undisturbed: Undisturbed, folders: Sequence[Path]) -> dict[str, Kind]:
    """Every kind of damage to every kind of file; files that differ in a key, number or label are one."""
    kinds: dict[str, Kind] = {}
    for way in FILE_HARMS:
        for folder in folders:
            groups: dict[str, list[str]] = {}
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    name = path.relative_to(folder).as_posix()
                    groups.setdefault(name_file_kind(name), []).append(name)
            for kind, names in groups.items():
                # what two folders have in common needs to be damaged in one
                kinds.setdefault(f"{kind}: {way}", partial(draw_damage, undisturbed, folder, names, way))
    names = sorted(kinds)
    random.Random(0).shuffle(names)  # so that few trials already see many kinds
    return {name: kinds[name] for name in names}


def name_file_kind(name: str) -> str:
    """A file's name without what tells it from others of its kind."""
    name = KEY.sub("KEY", name)
    name = re.sub("cells/[^/]*", "cells/CELL", name)
    return re.sub(r"\d+", "N", name)


def draw_damage(
    undisturbed: Undisturbed,
    source: Path,
    names: Sequence[str],
    way: str,
    draw: random.Random,
    folder: Path,
) -> Trial:
    """One of the files; a copy of the sweep's folder is damaged when it is tried."""
    name = draw.choice(names)
    return Trial(f"{name}: {way}", partial(damage, undisturbed, source, name, way, draw, folder))


def damage(
    undisturbed: Undisturbed, source: Path, name: str, way: str, draw: random.Random, folder: Path
) -> None:
    """Damage a file, look at what is planned, ask the model of a cell, and run the sweep again."""
    out = copy_tree(source, folder / "out")
    harm_file(draw, out / name, way)
    run_checked(folder, sweep.main, [f"out={out}", "--plan", *sweeps.SMALL])
    cells = sorted(out.glob("cells/*"))
    if cells and name.startswith(("cells", "finetune")):
        picture = next(undisturbed.out.glob("data/*/*/images/test/*.png"))
        run_checked(folder, chat.main, [str(picture), "what ?", f"model={cells[0]}", "max_new_tokens=1"])
    ended = run_checked(folder, sweep.main, [f"out={out}", *sweeps.SMALL])
    if ended.code == 0:
        # stages before one that is whole are not looked at, so damaged weights may stay as they are
        assert_same_results(sweeps.collect_tables(out), undisturbed.tables)
        leftovers = sweeps.list_leftovers(out)
        assert not leftovers, f"left: {leftovers}"


def run_checked(folder: Path, main: Callable[..., int], arguments: list[str]) -> Ended:
    """A command that works, or says in one line what is wrong."""
    ended = sweeps.start(folder / "streams", main, arguments).wait(HANGS)
    words = f"{main.__module__} {os.path.basename(arguments[0])}: "
    assert ended.code is not None, f"{words}hangs"
    assert "Traceback" not in ended.screen + ended.error, words + ended.error[-500:]
    assert ended.code in (0, 2), f"{words}exit code {ended.code}: {(ended.screen + ended.error)[-500:]}"
    errors = [text for text in ended.error.splitlines() if text.startswith("error: ")]
    assert len(errors) == (ended.code == 2), words + ended.error[-500:]
    return ended


if __name__ == "__main__":
    sys.exit(main())
