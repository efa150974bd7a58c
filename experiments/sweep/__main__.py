"""Trains, evaluates and prints a table: `python -m experiments.sweep compressor=sap,sap+embq seed=0,1`.

Exit code 0: all done; 1: a cell failed; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from compressors.command_line import run_guarded
from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.config.schema import Config
from experiments.runtime.bars import create_reporter
from experiments.runtime.command import CommandParser
from experiments.runtime.files import write_atomic
from experiments.store import results
from experiments.store.store import StageRunner, Store, import_runner
from experiments.sweep import help, request, score_table
from experiments.sweep.launcher import launch_cells, read_log_tail, title_cell
from experiments.sweep.plan_view import make_plan_tables
from experiments.sweep.request import CellJob, SweepRequest


def check_model_sizes(config: Config) -> None:
    """What only a model's sizes can tell, raised as UsageError; imports torch and transformers."""
    from experiments.models import build

    build.check_model_config(config)


def main(
    arguments: Sequence[str] | None = None,
    runner: Callable[[str], StageRunner] = import_runner,
    check: Callable[[Config], None] = check_model_sizes,
) -> int:
    """The command; its exit code. `runner` computes stages, `check` looks at cells before anything runs."""
    return run_guarded(
        lambda: run_sweep(arguments, runner, check),
        "choose another directory with out=DIR",
        "interrupted; the same command goes on where it stopped",
    )


def run_sweep(
    arguments: Sequence[str] | None, runner: Callable[[str], StageRunner], check: Callable[[Config], None]
) -> int:
    """The command, with its exceptions."""
    parser = CommandParser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    console = Console()
    if options.help:
        console.print(help.make_help_text(), markup=False, highlight=False, soft_wrap=True)
        return 0
    asked = request.read_request(options.overrides)
    store = Store(Path(asked.jobs[0][0].config.out), runner=runner)
    if options.plan:
        for each in make_plan_tables(asked, store):
            console.print(each, soft_wrap=isinstance(each, str), highlight=False)
        return 0
    with store.open_root():
        with create_reporter(console) as store.report:
            for cell in list_unlike_cells(asked.jobs, store):
                check_cell(cell, check)
            ended = launch_cells(asked.jobs, store, asked.launch, runner)
        print_score_tables(asked, ended.finished, store, console)
    if asked.left_out:
        console.print(
            f"{asked.left_out} cells are in the earlier report; python -m ablations.report shows "
            "them beside these, with the same table= and earlier=",
            markup=False,
            soft_wrap=True,
        )
    for cell, why, log in ended.failed:
        console.print(f"failed: {title_cell(cell)}: {why}; see {log}", markup=False, soft_wrap=True)
    for log in dict.fromkeys(log for *_, log in ended.failed):
        console.print(
            f"{log}:",
            *(f"  {line}" for line in read_log_tail(log)),
            sep="\n",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    return 1 if ended.failed else 0


def check_cell(cell: Cell, check: Callable[[Config], None]) -> None:
    """`check`, its errors with the cell's name: a table has many."""
    try:
        check(cell.config)
    except UsageError as error:
        raise UsageError(f"{cell.label}: {error}") from error


def list_unlike_cells(jobs: list[CellJob], store: Store) -> list[Cell]:
    """Cells that are not finished, one for each shape of model."""
    return list(
        {
            describe_model_shape(cell): cell for cell, stage in jobs if store.find_status(stage) != "done"
        }.values()
    )


def describe_model_shape(cell: Cell) -> str:
    """What the sizes of a cell's model follow from."""
    config = cell.config
    return str(
        (
            config.compressor,
            config.projector,
            config.parts,
            config.tower,
            config.llm,
            config.image,
            config.prune,
        )
    )


def print_score_tables(asked: SweepRequest, finished: set[str], store: Store, console: Console) -> None:
    """Print the tables and write them."""
    groups = []
    for heading, jobs in asked.views:
        found = results.collect_scores([job for job in jobs if job[1].key in finished], store)
        for group in found:
            group.title = f"{heading}, {group.title}" if heading else group.title
        groups += found
    if not groups:
        return
    write_atomic(store.root / "table.md", score_table.format_score_markdown(groups))
    write_atomic(store.root / "table.csv", score_table.format_score_csv(groups))
    for group in groups:
        if console.is_terminal:
            console.print(*score_table.make_screen_tables(group, console.width), sep="")
    if not console.is_terminal:
        console.print(
            score_table.format_score_markdown(groups), markup=False, highlight=False, soft_wrap=True
        )
    console.print(
        f"{store.root / 'table.md'}  {store.root / 'table.csv'}  {store.root / 'cells'}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    sys.exit(main())
