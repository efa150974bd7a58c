"""What sharing stages saves: `python -m experiments.sharing table=3,4,5,6 data.scale=0.02`.

Every cell is computed twice, with nothing else there and in a store that it shares with the cells before it:
the two in turn, in this process, so that a machine that is busy at times is so for both. Their results must
have the same bytes. A cell that stands in several tables counts as often in "one by one", since whoever
makes the tables one by one computes it as often; "each cell once" leaves these repetitions out.

The smaller `data.scale`, the larger the share of what does not depend on it.
"""

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from compressors.command_line import run_guarded
from experiments.runtime.bars import reporter
from experiments.runtime.command import Parser
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter
from experiments.store.folder import versions
from experiments.store.plan import KINDS, Stage
from experiments.store.store import Runner, Store, runner
from experiments.sweep import request
from experiments.sweep.launcher import title
from experiments.sweep.plan_view import span
from experiments.sweep.request import Job, Request


@dataclass
class Seconds:
    """Of all cells: from a clock around them, and by kind of stage as the stages note it."""

    total: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)

    def add(self, seconds: float, stages: dict[str, float], times: int = 1) -> None:
        self.total += times * seconds
        for kind, each in stages.items():
            self.kinds[kind] += times * each


@dataclass
class Saving:
    """One by one, each cell once, and all in one store."""

    one_by_one: Seconds = field(default_factory=Seconds)
    once: Seconds = field(default_factory=Seconds)
    shared: Seconds = field(default_factory=Seconds)


class Differs(Exception):
    """A cell's results depend on what was there before."""


def measure(
    asked: Request,
    root: Path,
    runner: Callable[[str], Runner],
    report: Reporter,
    clock: Callable[[], float] = time.monotonic,
) -> Saving:
    """Every cell both ways, one way first and the other first by turns; below `root`. The first cell is
    computed once more before all others, so that imports count for neither way."""
    rows = Counter(stage.key for _, jobs in asked.views for _, stage in jobs)
    saving, shared = Saving(), Store(root / "shared", report, runner)
    report.cells(2 * len(asked.jobs) + 1)
    alone(asked.jobs[0], root, runner, report, clock)
    for number, job in enumerate(asked.jobs):
        if number % 2:
            rest, new, same = timed(job, shared, clock)
        own, by_kind, result = alone(job, root, runner, report, clock)
        if not number % 2:
            rest, new, same = timed(job, shared, clock)
        if result != same:
            raise Differs(f"{title(job[0])}: other results in a shared directory than in one of its own")
        saving.one_by_one.add(own, by_kind, rows[job[1].key])
        saving.once.add(own, by_kind)
        saving.shared.add(rest, new)
    return saving


Timed = tuple[float, dict[str, float], dict[str, list]]  # seconds, seconds by kind, files


def alone(
    job: Job, root: Path, runner: Callable[[str], Runner], report: Reporter, clock: Callable[[], float]
) -> Timed:
    """One cell in a directory of its own, which is removed."""
    with tempfile.TemporaryDirectory(dir=root, prefix="alone-") as folder:
        return timed(job, Store(Path(folder), report, runner), clock)


def timed(job: Job, store: Store, clock: Callable[[], float]) -> Timed:
    """One cell's seconds in a store, those of the stages it adds by kind, and what it results in."""
    cell, root = job
    store.report.cell(title(cell))
    new: list[Stage] = [s for s in root.ancestors().values() if store.status(s) != "done"]
    started = clock()
    store.compute(root)
    took, kinds = clock() - started, Counter()
    for stage in new:
        kinds[stage.kind] += store.done(stage)["seconds"]
    return took, kinds, store.done(root)["files"]


def show(saving: Saving, console: Console) -> None:
    """Seconds by kind of stage, and what is left of them."""
    table = Table("stage", title="what sharing stages saves", title_justify="left")
    ways = saving.one_by_one, saving.once, saving.shared
    for name in ("one by one", "each cell once", "shared", "of one by one", "of each once"):
        table.add_column(name, justify="right")
    for kind in (*KINDS, "total"):
        seconds = [way.total if kind == "total" else way.kinds[kind] for way in ways]
        ratios = [f"{seconds[2] / other:.2f}" if other else "" for other in seconds[:2]]
        table.add_row(kind, *map(span, seconds), *ratios)
    console.print(table)


def as_json(saving: Saving, asked: Request, overrides: Sequence[str]) -> str:
    """The figures, with what they were measured on."""
    found = {
        name: {"seconds": round(way.total, 1), "stages": {k: round(s, 1) for k, s in way.kinds.items()}}
        for name, way in vars(saving).items()
    }
    content = {
        "command": " ".join(["python -m experiments.sharing", *overrides]),
        "cells": len(asked.jobs),
        "rows": sum(len(jobs) for _, jobs in asked.views),
        "versions": versions(),
        **found,
    }
    return json.dumps(content, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None, runner: Callable[[str], Runner] = runner) -> int:
    """The command; its exit code."""
    return run_guarded(
        lambda: run(sys.argv[1:] if arguments is None else arguments, runner),
        "choose another directory with TMPDIR=DIR",
    )


def run(arguments: Sequence[str], runner: Callable[[str], Runner]) -> int:
    """The command, with its exceptions."""
    parser = Parser("python -m experiments.sharing", description=__doc__)
    parser.add_argument("overrides", nargs="+", help="as for experiments.sweep")
    parser.add_argument("--to", type=Path, help="write the figures to this JSON file")
    options = parser.parse_intermixed_args(arguments)
    asked, console = request.read(options.overrides), Console()
    with tempfile.TemporaryDirectory(prefix="slothkit-sharing-") as folder, reporter(console) as report:
        saving = measure(asked, Path(folder), runner, report)
    show(saving, console)
    if options.to:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.to, as_json(saving, asked, options.overrides))
    return 0


if __name__ == "__main__":
    sys.exit(main())
