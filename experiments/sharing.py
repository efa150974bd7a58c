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
from experiments.runtime.bars import create_reporter
from experiments.runtime.command import CommandParser
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter
from experiments.store.folder import read_package_versions
from experiments.store.plan import STAGE_KINDS, Stage
from experiments.store.store import StageRunner, Store, import_runner
from experiments.sweep import request
from experiments.sweep.launcher import title_cell
from experiments.sweep.plan_view import format_seconds
from experiments.sweep.request import CellJob, SweepRequest


@dataclass
class StageSeconds:
    """Of all cells: from a clock around them, and by kind of stage as the stages note it."""

    total: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)

    def add_cell(self, seconds: float, stages: dict[str, float], times: int = 1) -> None:
        self.total += times * seconds
        for kind, each in stages.items():
            self.kinds[kind] += times * each


@dataclass
class SharingTimes:
    """One by one, each cell once, and all in one store."""

    one_by_one: StageSeconds = field(default_factory=StageSeconds)
    once: StageSeconds = field(default_factory=StageSeconds)
    shared: StageSeconds = field(default_factory=StageSeconds)


class ResultsDiffer(Exception):
    """A cell's results depend on what was there before."""


def measure_sharing(
    asked: SweepRequest,
    root: Path,
    runner: Callable[[str], StageRunner],
    report: Reporter,
    clock: Callable[[], float] = time.monotonic,
) -> SharingTimes:
    """Every cell both ways, one way first and the other first by turns; below `root`. The first cell is
    computed once more before all others, so that imports count for neither way."""
    rows = Counter(stage.key for _, jobs in asked.views for _, stage in jobs)
    saving, shared = SharingTimes(), Store(root / "shared", report, runner)
    report.announce_cells(2 * len(asked.jobs) + 1)
    time_cell_alone(asked.jobs[0], root, runner, report, clock)
    for number, job in enumerate(asked.jobs):
        if number % 2:
            rest, new, same = time_cell(job, shared, clock)
        own, by_kind, result = time_cell_alone(job, root, runner, report, clock)
        if not number % 2:
            rest, new, same = time_cell(job, shared, clock)
        if result != same:
            raise ResultsDiffer(
                f"{title_cell(job[0])}: other results in a shared directory than in one of its own"
            )
        saving.one_by_one.add_cell(own, by_kind, rows[job[1].key])
        saving.once.add_cell(own, by_kind)
        saving.shared.add_cell(rest, new)
    return saving


TimedCell = tuple[float, dict[str, float], dict[str, list]]  # seconds, seconds by kind, files


def time_cell_alone(
    job: CellJob,
    root: Path,
    runner: Callable[[str], StageRunner],
    report: Reporter,
    clock: Callable[[], float],
) -> TimedCell:
    """One cell in a directory of its own, which is removed."""
    with tempfile.TemporaryDirectory(dir=root, prefix="alone-") as folder:
        return time_cell(job, Store(Path(folder), report, runner), clock)


def time_cell(job: CellJob, store: Store, clock: Callable[[], float]) -> TimedCell:
    """One cell's seconds in a store, those of the stages it adds by kind, and what it results in."""
    cell, root = job
    store.report.begin_cell(title_cell(cell))
    new: list[Stage] = [s for s in root.collect_stages().values() if store.find_status(s) != "done"]
    started = clock()
    store.compute(root)
    took, kinds = clock() - started, Counter()
    for stage in new:
        kinds[stage.kind] += store.read_note(stage)["seconds"]
    return took, kinds, store.read_note(root)["files"]


def print_sharing_table(saving: SharingTimes, console: Console) -> None:
    """Seconds by kind of stage, and what is left of them."""
    table = Table("stage", title="what sharing stages saves", title_justify="left")
    ways = saving.one_by_one, saving.once, saving.shared
    for name in ("one by one", "each cell once", "shared", "of one by one", "of each once"):
        table.add_column(name, justify="right")
    for kind in (*STAGE_KINDS, "total"):
        seconds = [way.total if kind == "total" else way.kinds[kind] for way in ways]
        ratios = [f"{seconds[2] / other:.2f}" if other else "" for other in seconds[:2]]
        table.add_row(kind, *map(format_seconds, seconds), *ratios)
    console.print(table)


def format_sharing_json(saving: SharingTimes, asked: SweepRequest, overrides: Sequence[str]) -> str:
    """The figures, with what they were measured on."""
    found = {
        name: {"seconds": round(way.total, 1), "stages": {k: round(s, 1) for k, s in way.kinds.items()}}
        for name, way in vars(saving).items()
    }
    content = {
        "command": " ".join(["python -m experiments.sharing", *overrides]),
        "cells": len(asked.jobs),
        "rows": sum(len(jobs) for _, jobs in asked.views),
        "versions": read_package_versions(),
        **found,
    }
    return json.dumps(content, indent=1) + "\n"


def main(arguments: Sequence[str] | None = None, runner: Callable[[str], StageRunner] = import_runner) -> int:
    """The command; its exit code."""
    return run_guarded(
        lambda: run_sharing(sys.argv[1:] if arguments is None else arguments, runner),
        "choose another directory with TMPDIR=DIR",
    )


def run_sharing(arguments: Sequence[str], runner: Callable[[str], StageRunner]) -> int:
    """The command, with its exceptions."""
    parser = CommandParser("python -m experiments.sharing", description=__doc__)
    parser.add_argument("overrides", nargs="+", help="as for experiments.sweep")
    parser.add_argument("--to", type=Path, help="write the figures to this JSON file")
    options = parser.parse_intermixed_args(arguments)
    asked, console = request.read_request(options.overrides), Console()
    with (
        tempfile.TemporaryDirectory(prefix="slothkit-sharing-") as folder,
        create_reporter(console) as report,
    ):
        saving = measure_sharing(asked, Path(folder), runner, report)
    print_sharing_table(saving, console)
    if options.to:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.to, format_sharing_json(saving, asked, options.overrides))
    return 0


if __name__ == "__main__":
    sys.exit(main())
