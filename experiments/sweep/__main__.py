"""Trains, evaluates and prints a table: `python -m experiments.sweep compressor=sap,sap+embq seed=0,1`.

Exit code 0: all done; 1: a cell failed; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from compressors.command_line import Command, CommandLine
from compressors.spelling import spell_commands
from experiments.config.schema import Config
from experiments.config.trained import CELLS_FOLDER
from experiments.runtime.bars import create_reporter
from experiments.runtime.provenance import declare_command
from experiments.stages.runners import find_runner
from experiments.store import results
from experiments.store.store import StageRunner, Store
from experiments.sweep import help, score_table
from experiments.sweep.checks import check_model_sizes, list_data_notes, list_unchecked_cells
from experiments.sweep.comparison import find_comparison
from experiments.sweep.launcher import check_launch_parameters
from experiments.sweep.plan_view import make_plan, make_plan_tables
from experiments.sweep.request import SweepRequest, read_request
from experiments.sweep.results import SweepResults
from experiments.sweep.run import open_store, run_request
from experiments.sweep.scheduler import FailedCell, read_log_tail
from experiments.sweep.side_by_side import choose_launch


@dataclass(frozen=True)
class SweepOptions:
    """None of its own: all settings are a cell's, a table's or a launcher's (`request`)."""


class SweepCommand(Command):
    """A command whose help has the settings of cells and launchers, and all parts with their knobs."""

    def help(self) -> str:
        return f"Usage: {self.usage}\n\n{self.description}{help.make_help_text()}\n"


COMMAND = SweepCommand(
    usage="python -m experiments.sweep [KEY=VALUE ...] [--plan] [--help]",
    description=help.HELP_HEAD,
    options=SweepOptions,
    overrides=True,
    flags=("--plan",),
    elsewhere="choose another directory with out=DIR",
    interrupted="interrupted; the same command goes on where it stopped",
)


def main(
    arguments: Sequence[str] | None = None,
    runner: Callable[[str], StageRunner] = find_runner,
    check: Callable[[Config], None] = check_model_sizes,
) -> int:
    """The command; its exit code. `runner` computes stages, `check` looks at cells before anything runs."""
    return COMMAND.run(lambda line: run_sweep(line, runner, check), arguments)


def run_sweep(
    line: CommandLine, runner: Callable[[str], StageRunner], check: Callable[[Config], None]
) -> int:
    """The command, with its exceptions."""
    console = Console()
    request = read_request(line.overrides)
    store = open_store(request, runner)
    if "--plan" in line.flags:  # before anything is written
        check_launch_parameters(request.launch)
        notes = [*list_unchecked_cells(request, store, check), *list_data_notes(request)]
        for table in [*notes, *show_plan(request, store)]:
            console.print(table, soft_wrap=isinstance(table, str), highlight=False)
        return 0
    declare_command(f"slothkit sweep {shlex.join(line.arguments)}")
    found = run_request(request, store, create_reporter(console), check)
    print_score_tables(found, console)
    if found.left_out:
        print_plain(
            console,
            f"{found.left_out} cells are in the earlier report; python -m ablations.report shows "
            "them beside these, with the same table= and earlier=",
        )
    print_failures(found.failed, console)
    return 1 if found.failed else 0


def show_plan(request: SweepRequest, store: Store) -> list[Table | str]:
    """The tables of --plan, with the times that a sweep announces and chooses its workers by."""
    comparison = find_comparison(request.jobs, store)
    find_plan = comparison.make_plan_finder(request.jobs)
    launch = choose_launch(request.jobs, request.launch, store, find_plan)
    # of a setting that no study has, a study's times are good enough to choose workers by alone
    plan = find_plan() if comparison.study else make_plan(request.jobs, store)
    return make_plan_tables(plan, replace(request, launch=launch), comparison.describe_basis(plan))


def print_score_tables(found: SweepResults, console: Console) -> None:
    """Print the tables, and where they lie."""
    if not found.groups:
        return
    if console.is_terminal:
        for group in found.groups:
            console.print(*score_table.make_screen_tables(group, console.width), sep="")
    else:
        print_plain(console, str(found))
    print_plain(console, f"{found.table}  {found.table.with_suffix('.csv')}  {found.root / CELLS_FOLDER}")


def print_failures(failed: Sequence[FailedCell], console: Console) -> None:
    """Why each cell failed, then the last lines of each log: several cells may have failed by one stage."""
    for failure in failed:
        title = results.title_cell(failure.cell)
        print_plain(console, f"failed: {title}: {failure.reason}; see {failure.log}")
    for log in dict.fromkeys(failure.log for failure in failed):
        print_plain(console, f"{log}:")
        for text in read_log_tail(log):
            print_plain(console, f"  {text}")


def print_plain(console: Console, text: str) -> None:
    """Print text as it is: brackets in it are no markup, long lines are left to the terminal."""
    console.print(spell_commands(text), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
