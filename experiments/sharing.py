"""What sharing stages saves: `python -m experiments.sharing table=3,4,5,6 data.scale=0.02`.

Every cell is computed twice, with nothing else there and in a store that it shares with the cells before it:
the two in turn, in this process, so that a machine that is busy at times is so for both. Their results must
have the same bytes. A cell that stands in several tables counts as often in "one by one", since whoever
makes the tables one by one computes it as often; "each cell once" leaves these repetitions out.

The smaller `data.scale`, the larger the share of what does not depend on it.
"""

import json
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.key_value import join_settings
from compressors.setting_fields import setting
from experiments.config.schema import Config
from experiments.runtime.bars import create_reporter
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter
from experiments.runtime.text_tables import make_framed_table
from experiments.stages.runners import find_runner
from experiments.store.folder import read_package_versions
from experiments.store.plan import STAGE_KINDS
from experiments.store.results import title_cell
from experiments.store.store import StageRunner, Store
from experiments.sweep import request
from experiments.sweep.checks import check_model_sizes, check_request
from experiments.sweep.plan_view import format_seconds
from experiments.sweep.request import CellJob, SweepRequest

RunnerOfKind = Callable[[str], StageRunner]
Clock = Callable[[], float]


@dataclass(frozen=True)
class SharingOptions:
    to: Path | None = setting(None, "JSON file to write the figures to")


COMMAND = Command(
    usage="python -m experiments.sharing KEY=VALUE ... [to=FILE]",
    description=f"{__doc__}\nOther KEY=VALUE: as for python -m experiments.sweep.",
    options=SharingOptions,
    overrides=True,
    elsewhere="choose another directory with TMPDIR=DIR",
)


@dataclass
class StageSeconds:
    """Of all cells: from a clock around them, and by kind of stage as the stages note it."""

    total: float = 0.0
    kinds: dict[str, float] = field(default_factory=dict)

    def add_cell(self, cell: "TimedCell", times: int = 1) -> None:
        """Count a cell so many times."""
        self.total += times * cell.seconds
        for kind, seconds in cell.kinds.items():
            self.kinds[kind] = self.kinds.get(kind, 0.0) + times * seconds


@dataclass
class SharingTimes:
    """One by one, each cell once, and all in one store."""

    one_by_one: StageSeconds = field(default_factory=StageSeconds)
    once: StageSeconds = field(default_factory=StageSeconds)
    shared: StageSeconds = field(default_factory=StageSeconds)


class TimedCell(NamedTuple):
    """Seconds of a cell, those of the stages that were computed for it by kind, and its result's files with
    their digests."""

    seconds: float
    kinds: Mapping[str, float]
    files: dict[str, list]


class ResultsDiffer(Exception):
    """A cell's results depend on what was there before."""


def main(
    arguments: Sequence[str] | None = None,
    runner: RunnerOfKind = find_runner,
    check: Callable[[Config], None] = check_model_sizes,
) -> int:
    """The command; its exit code. `runner` computes stages, `check` says what is wrong with a cell."""
    return COMMAND.run(lambda line: run_sharing(line, runner, check), arguments)


def run_sharing(line: CommandLine, runner: RunnerOfKind, check: Callable[[Config], None]) -> int:
    """The command, with its exceptions."""
    options: SharingOptions = line.options
    if not line.overrides:
        raise UsageError(f"expected {COMMAND.usage}, found no cells (--help shows more)")
    for key in line.overrides:
        if key == "out" or key.partition(".")[0] == "launch":
            raise UsageError(f"{key}: cells are timed one by one, in a folder of their own; leave it out")
    sweep = request.read_request(line.overrides)
    console = Console()
    with (
        tempfile.TemporaryDirectory(prefix="slothkit-sharing-") as folder,
        create_reporter(console) as report,
    ):
        check_request(sweep, Store(Path(folder)), check)
        times = measure_sharing(sweep, Path(folder), runner, report)
    print_sharing_table(times, console)
    if options.to:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.to, format_sharing_json(times, sweep, join_settings(line.overrides)))
    return 0


def measure_sharing(
    sweep: SweepRequest,
    root: Path,
    runner: RunnerOfKind,
    report: Reporter,
    clock: Clock = time.monotonic,
) -> SharingTimes:
    """Every cell both ways, one way first and the other first by turns; below `root`. The first cell is
    computed once more before all others, so that imports count for neither way."""
    rows: Counter[str] = Counter()  # how often tables show a cell, by the key of its last stage
    for _, jobs in sweep.views:
        rows.update(stage.key for _, stage in jobs)
    times = SharingTimes()
    store = Store(root / "shared", report, runner)
    report.announce_cells(2 * len(sweep.jobs) + 1)
    time_cell_alone(sweep.jobs[0], root, runner, report, clock)
    for number, job in enumerate(sweep.jobs):
        # by turns: whoever comes second finds files in the system's cache
        if number % 2 == 0:
            alone = time_cell_alone(job, root, runner, report, clock)
            shared = time_cell(job, store, clock)
        else:
            shared = time_cell(job, store, clock)
            alone = time_cell_alone(job, root, runner, report, clock)
        cell, stage = job
        if alone.files != shared.files:
            raise ResultsDiffer(
                f"{title_cell(cell)}: other results in a shared directory than in one of its own"
            )
        times.one_by_one.add_cell(alone, rows[stage.key])
        times.once.add_cell(alone)
        times.shared.add_cell(shared)
    return times


def time_cell_alone(
    job: CellJob, root: Path, runner: RunnerOfKind, report: Reporter, clock: Clock
) -> TimedCell:
    """One cell in a directory of its own, which is removed."""
    with tempfile.TemporaryDirectory(dir=root, prefix="alone-") as folder:
        return time_cell(job, Store(Path(folder), report, runner), clock)


def time_cell(job: CellJob, store: Store, clock: Clock) -> TimedCell:
    """One cell in a store, which may have some of its stages."""
    cell, last_stage = job
    store.report.begin_cell(title_cell(cell))
    stages = last_stage.collect_stages().values()
    # stages that are there have notes of an earlier cell
    missing = [stage for stage in stages if not store.is_finished(stage)]
    start = clock()
    store.compute(last_stage)
    seconds = clock() - start
    kinds: Counter[str] = Counter()
    for stage in missing:
        kinds[stage.kind] += store.read_note(stage)["seconds"]
    return TimedCell(seconds, kinds, store.read_note(last_stage)["files"])


def print_sharing_table(times: SharingTimes, console: Console) -> None:
    """Seconds by kind of stage, and what is left of them."""
    ways = (times.one_by_one, times.once, times.shared)
    rows = [["stage", "one by one", "each cell once", "shared", "of one by one", "of each once"]]
    for kind in STAGE_KINDS:
        rows.append(make_sharing_row(kind, [way.kinds.get(kind, 0.0) for way in ways]))
    rows.append(make_sharing_row("total", [way.total for way in ways]))
    console.print(make_framed_table(rows, title="what sharing stages saves"))


def make_sharing_row(name: str, seconds: Sequence[float]) -> list[str]:
    """Seconds one by one, of each cell once, shared; then the third over either of the others."""
    row = [name, *map(format_seconds, seconds)]
    *references, shared = seconds
    for reference in references:
        row.append(f"{shared / reference:.2f}" if reference else "")
    return row


def format_sharing_json(times: SharingTimes, sweep: SweepRequest, overrides: Sequence[str]) -> str:
    """The figures, with what they were measured on."""
    content: dict[str, object] = {
        "command": f"python -m experiments.sharing {shlex.join(overrides)}",
        "cells": len(sweep.jobs),
        "rows": sum(len(jobs) for _, jobs in sweep.views),
        "versions": read_package_versions(),
    }
    for name, way in vars(times).items():
        stages = {kind: round(seconds, 1) for kind, seconds in way.kinds.items()}
        content[name] = {"seconds": round(way.total, 1), "stages": stages}
    return json.dumps(content, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main())
