"""Prints and writes the tables of the paper's ablations from finished cells: `python -m ablations.report`.

Exit code 0: written; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console

from compressors.command_line import parse_settings, run_guarded
from compressors.errors import UsageError
from compressors.registry import conform
from experiments.config.overrides import parse_value, take_single_value
from experiments.config.schema import Config
from experiments.runtime.bars import create_reporter
from experiments.runtime.command import CommandParser

REPORT_HELP = """\
Usage: python -m ablations.report [table=3,4] [seed=0,1,2] [KEY=VALUE ...] [out=runs] [earlier=DIR] [to=DIR]
       python -m ablations.report results=DIR [to=DIR]

Prints the tables of the paper's ablations from cells that `python -m experiments.sweep` has finished below
out=, with a verdict on each of the paper's claims, and writes them to to= (OUT/report): Markdown, LaTeX, CSV,
one HTML page, plots, and what the report can be made from again without the cells.

  table=3,4     tables of the project by name, or paths of YAML files (all of the project)
  seed=0,1,2    seeds (all that any cell has finished at)
  KEY=VALUE     settings and knobs, as for the sweep that computed the cells
  earlier=DIR   cells that are not finished below out= as the report in DIR has them: published rows beside
                yours, without running them again
  measure=true  TTFT and peak memory of every row, on this machine, side by side
  results=DIR   the report from what an earlier one left in DIR, not from cells
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return run_guarded(lambda: run_report(given), "choose another directory with to=DIR")


def run_report(arguments: list[str]) -> int:
    """The command, with its exceptions."""
    parser = CommandParser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    console = Console()
    if options.help:
        console.print(REPORT_HELP, markup=False, highlight=False, soft_wrap=True)
        return 0
    axes = parse_settings(options.overrides)
    results, to, timed, earlier = (
        take_single_value(axes, key) for key in ("results", "to", "measure", "earlier")
    )
    measure = conform(parse_value(timed or "false", "measure"), bool, "measure")
    from ablations import outcomes
    from ablations.writing import write  # numpy, scipy and matplotlib: not for --help

    if results is not None:
        if axes or earlier:
            raise UsageError(
                f"{min(axes, default='earlier')}: cells are not looked at with "
                f"results={results}; leave it out"
            )
        report = outcomes.load_report(Path(results))
        folder = Path(to or results)
    else:
        root = Path(take_single_value(axes, "out") or Config().out)
        folder = Path(to) if to else root / "report"
        command = f"python -m ablations.report {' '.join(arguments)}".strip()
        with create_reporter(console) if measure else nullcontext() as told:
            report = report_from_cells(axes, root, folder, command, told, Path(earlier) if earlier else None)
    write.write_report(report, folder, console)
    return 0


def report_from_cells(
    axes: dict[str, list[str]], root: Path, folder: Path, command: str, measuring, earlier: Path | None
):
    """The report of what is finished below `root` or in the report `earlier`; with a reporter in `measuring`
    rows are measured."""
    from ablations import collect
    from experiments.config import tables
    from experiments.store.store import Store

    wanted = axes.pop("table", [tables.ALL_TABLES])
    axes["out"] = [str(root)]
    found = collect.collect_report(wanted, axes, Store(root), folder, command, measuring, earlier)
    if not found.made["cells"] and not found.made.get("taken"):
        names = ",".join(tables.expand_table_names(wanted))
        if not root.is_dir():
            raise UsageError(
                f"out={root}: no such directory; "
                f"python -m experiments.sweep table={names} out={root} fills it"
            )
        raise UsageError(
            f"out={root}: no cell of table {names} has finished there; run "
            f"python -m experiments.sweep table={names} out={root}, with the same settings"
        )
    return found


if __name__ == "__main__":
    sys.exit(main())
