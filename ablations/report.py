"""Prints and writes the report of finished cells, of a sweep or of tables: `python -m ablations.report`.

Exit code 0: written; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.key_value import Axes, join_settings, quote_text
from compressors.setting_fields import setting

# numpy, scipy, matplotlib and the sweep's configuration are imported where they are needed: --help and a
# misspelt line would otherwise wait for them
if TYPE_CHECKING:
    from rich.console import Console

    from ablations.outcomes import Report
    from ablations.writing.grids.word_grid import WordGrid
    from ablations.writing.write import RenderedReport
    from experiments.runtime.progress import Reporter


@dataclass(frozen=True)
class ReportOptions:
    """Settings of the command itself; all others are those of the cells."""

    results: Path | None = setting(None, "the report from what an earlier one left in DIR, not from cells")
    to: Path | None = setting(None, "directory to write (OUT/report, or that of results=)")
    earlier: Path | None = setting(
        None,
        "cells that are not finished below out= as the report in DIR has them: published rows beside yours",
    )
    baseline: str | None = setting(
        None,
        "row or compressor that the others are compared with (avg_pool, else identity, else the first row; a "
        "table's rows only where it is given)",
    )
    measure: bool = setting(False, "TTFT and peak memory of every row, on this machine, side by side")


COMMAND = Command(
    usage="""\
python -m ablations.report [KEY=VALUE ...] [seed=0,1,2] [baseline=ROW] [out=runs] [earlier=DIR] [to=DIR]
       python -m ablations.report table=3,4 [seed=0,1,2] [KEY=VALUE ...] [out=runs] [earlier=DIR] [to=DIR]
       python -m ablations.report results=DIR [to=DIR]""",
    description="""\
Prints a table of the cells that `python -m experiments.sweep` has finished below out=, each row with its
difference to a baseline, or tables with a verdict on each of their claims, and writes them to to=
(OUT/report): Markdown, LaTeX, CSV, one HTML page, plots, and what the report can be made from again without
the cells.

  KEY=VALUE     the line of the sweep that computed the cells (without any settings, and without table=: all
                cells that have finished)
  table=3,4     tables of the project by name, or paths of YAML files; all: those of the paper
  rows=LABEL    of a table's rows these alone; claims on others are not judged
  seed=0,1,2    seeds (all that any cell has finished at)""",
    options=ReportOptions,
    overrides=True,
    elsewhere="choose another directory with to=DIR",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_report, arguments)


def make_report(*settings: str, **values: object) -> "list[WordGrid]":
    """Write the report of finished cells, as `python -m ablations.report` does with the same settings, and
    return its tables, the scores first: each has a `title` and `to_pandas()`.

    settings, values   as for `slothkit.sweep`, whose own may be given again; baseline, to, earlier, measure
                       and results as on the command line

    UsageError for bad input, and where nothing has finished.
    """
    from rich.console import Console

    from ablations.writing import write
    from experiments.sweep.run import make_words

    line = COMMAND.read(make_words(settings, values))
    report, rendered, folder = build_report(line, Console(stderr=True))
    write.write_report(report, rendered, folder)
    return rendered.grids


def run_report(line: CommandLine) -> int:
    """Make the report that a command line asks for, print and write it."""
    from rich.console import Console

    from ablations.writing import write

    console = Console()
    report, rendered, folder = build_report(line, console)
    write.write_report(report, rendered, folder)
    write.print_report(rendered, console, folder)
    return 0


def build_report(line: CommandLine, console: "Console") -> "tuple[Report, RenderedReport, Path]":
    """The report that a command line asks for, in all its forms, and the folder that it is to be written to.
    Progress of measuring goes to `console`."""
    from ablations import report_files
    from ablations.study import explain_report_errors
    from ablations.writing import write
    from experiments.config.overrides import take_single_value
    from experiments.config.schema import Config
    from experiments.runtime.bars import create_reporter
    from experiments.runtime.memory import begin_request
    from experiments.sweep.options import take_launch_options
    from experiments.sweep.request import take_blind

    options: ReportOptions = line.options
    if options.results is not None:
        refused = min(line.overrides, default="earlier" if options.earlier is not None else "baseline")
        if line.overrides or options.earlier is not None or options.baseline is not None:
            raise UsageError(
                f"{refused}: cells are not looked at with results={options.results}; leave it out"
            )
        if options.measure:
            raise UsageError(
                f"measure=true: results={options.results} has no cells that could be measured; leave it out"
            )
        folder = options.to or options.results
        report = report_files.load_report(options.results)
        with explain_report_errors(options.results, "results"):
            rendered = write.render_report(report)
    else:
        begin_request()
        axes = dict(line.overrides)
        # a sweep's line may be given as it stands: neither chooses a cell
        take_launch_options(axes)
        take_blind(axes)
        root = Path(take_single_value(axes, "out") or Config().out)
        folder = options.to or root / "report"
        measuring: AbstractContextManager[Reporter | None] = nullcontext()
        if options.measure:
            measuring = create_reporter(console)
        with measuring as reporter:
            # the report says by which command it was made
            typed = f"python -m ablations.report {shlex.join(line.arguments)}".strip()
            report = report_from_cells(axes, root, folder, typed, reporter, options)
        rendered = write.render_report(report)
    return report, rendered, folder


def report_from_cells(
    axes: Axes, root: Path, folder: Path, typed: str, reporter: "Reporter | None", options: ReportOptions
) -> "Report":
    """The report of what is finished below `root` or in an earlier report; with a reporter rows are measured.
    UsageError where nothing has finished: the sweep to run."""
    from rich.console import Console

    from ablations import collect
    from experiments.config.overrides import take_values
    from experiments.runtime.progress import PlainReporter
    from experiments.store.store import Store

    typed_axes = dict(axes)
    wanted = take_values(axes, "table") or []
    axes["out"] = [quote_text(str(root))]  # the cells' own setting, also where it was not given
    # warnings of damaged results stand apart from the report
    store = Store(root, PlainReporter(Console(stderr=True), prefix=""))
    report = collect.collect_report(
        wanted, axes, store, folder, typed, reporter, options.earlier, options.baseline
    )
    if report.provenance["cells"] or report.provenance.get("taken"):
        return report
    raise UsageError(explain_empty_report(typed_axes, root))


def explain_empty_report(axes: Axes, root: Path) -> str:
    """Why nothing below `root` can be reported, and what to do about it."""
    from ablations.plain_sweeps import CHOOSING_AXES
    from experiments.config import tables
    from experiments.config.trained import CELLS_FOLDER, list_cells

    axes = {**axes, "out": [quote_text(str(root))]}
    missing = "no such cell"
    if "table" in axes:
        axes["table"] = tables.expand_table_names(axes["table"])
        missing = f"no cell of table {','.join(axes['table'])}"
    command = f"python -m experiments.sweep {shlex.join(join_settings(axes))}"
    if not root.is_dir():
        return f"out={root}: no such directory; {command} fills it"
    cells = list_cells(root)
    if not cells or not axes.keys() <= CHOOSING_AXES:
        return f"out={root}: {missing} has finished there; run {command}, with the same settings"
    count = "1 cell lies" if len(cells) == 1 else f"{len(cells)} cells lie"
    again = "run their sweep's command again"
    reason = find_missing_evaluation(root, cells)
    if reason is None and "seed" in axes:
        seeds = f"seed={','.join(axes['seed'])}"
        reason = f"none that is whole has {seeds}"
        again = f"run their sweep's command with {seeds}"
    elif reason is None:
        reason = "no row can be made of them"
    return f"out={root}: {count} in {root / CELLS_FOLDER}, but {reason}; {again}"


def find_missing_evaluation(root: Path, cells: Sequence[str]) -> str | None:
    """In words, the first evaluation of these cells that is not below `root` any more; None if all are."""
    from experiments.config.trained import CELLS_FOLDER, list_gone_results, read_stage_names

    for cell in cells:
        try:
            stages = read_stage_names(root / CELLS_FOLDER / cell)
        except UsageError:  # which a warning has told
            continue
        for stage in list_gone_results(root, stages):
            if stage.startswith("evaluate/"):
                return f"{stage} of {cell} is gone"
    return None


if __name__ == "__main__":
    sys.exit(main())
