"""Trains, evaluates and prints a table: `python -m experiments.sweep compressor=sap,sap+embq seed=0,1`.

Exit code 0: all done; 1: a cell failed; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from compressors.command_line import Command, CommandLine
from compressors.errors import UnreachableError, UsageError
from experiments.config.cells import Cell
from experiments.config.schema import Config
from experiments.runtime.bars import create_reporter
from experiments.runtime.files import write_atomic
from experiments.stages.runners import find_runner
from experiments.store import results
from experiments.store.store import StageRunner, Store
from experiments.sweep import help, request, score_table
from experiments.sweep.options import IN_PROCESS_LAUNCHER, LaunchOptions
from experiments.sweep.plan_view import make_plan_tables
from experiments.sweep.request import CellJob, SweepRequest
from experiments.sweep.scheduler import FailedCell, launch_cells, read_log_tail


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


def check_model_sizes(config: Config) -> None:
    """What only a model's sizes can tell, raised as UsageError."""
    from experiments.stages import checks  # torch and transformers: a typo does not wait for them

    checks.check_cell_config(config)


def check_local_devices(config: Config) -> None:
    """UsageError when this machine lacks the devices that a cell asks for."""
    trainer = config.trainer
    if trainer.devices == "auto" and trainer.accelerator in ("auto", "cpu"):  # any machine has these
        return
    from experiments.stages import checks  # as above

    checks.check_devices(config)


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
    sweep = request.read_request(line.overrides)
    first_cell, _ = sweep.jobs[0]  # all cells have one output directory
    store = Store(Path(first_cell.config.out), runner=runner)
    if "--plan" in line.flags:  # before anything is written
        notes = list_unchecked_cells(sweep, store, check)
        for table in [*notes, *make_plan_tables(sweep, store)]:
            console.print(table, soft_wrap=isinstance(table, str), highlight=False)
        return 0
    with store.open_root():
        with create_reporter(console) as store.report:
            for cell in list_unlike_cells(sweep.jobs, store):
                check_cell(cell, sweep.launch, check)
            outcomes = launch_cells(sweep.jobs, store, sweep.launch)
        print_score_tables(sweep, outcomes.finished, store, console)
    if sweep.left_out:
        print_plain(
            console,
            f"{sweep.left_out} cells are in the earlier report; python -m ablations.report shows "
            "them beside these, with the same table= and earlier=",
        )
    print_failures(outcomes.failed, console)
    return 1 if outcomes.failed else 0


def check_cell(cell: Cell, launch: LaunchOptions, check: Callable[[Config], None]) -> None:
    """`check`, and of the devices where the work is done here; errors with the cell's name: a table has
    many."""
    try:
        check(cell.config)
        if launch.where == IN_PROCESS_LAUNCHER:  # else other machines do the work
            check_local_devices(cell.config)
    except UsageError as error:
        raise type(error)(f"{cell.label}: {error}") from error


def list_unchecked_cells(sweep: SweepRequest, store: Store, check: Callable[[Config], None]) -> list[str]:
    """Check all cells; notes of those whose sizes cannot be told, because a backbone is out of reach."""
    notes = []
    for cell in list_unlike_cells(sweep.jobs, store):
        try:
            check_cell(cell, sweep.launch, check)
        except UnreachableError as error:
            notes.append(f"not checked: {error}")
    return notes


def list_unlike_cells(jobs: list[CellJob], store: Store) -> list[Cell]:
    """Cells that are not finished, one for all that the checks see alike."""
    # a look at a model takes a moment, and most recipes of a table differ in nothing that is looked at
    cells_by_shape: dict[str, Cell] = {}
    for cell, stage in jobs:
        if store.find_status(stage) != "done":
            cells_by_shape.setdefault(describe_checked_settings(cell.config), cell)
    return list(cells_by_shape.values())


def describe_checked_settings(config: Config) -> str:
    """All that the checks of a cell look at."""
    parts = (config.compressor, config.projector, config.parts, config.prune)
    backbones = (config.tower, config.llm, config.image)
    training = (config.trainer, config.lora)
    rows = (config.data, config.prompt, config.evaluate)  # which have to fit into the LLM's positions
    steps = []
    for stage in (config.pretrain, config.finetune):
        steps.append((stage.batch_size, stage.accumulate))
    return str((parts, backbones, training, rows, steps))


def print_score_tables(sweep: SweepRequest, finished: set[str], store: Store, console: Console) -> None:
    """Print the tables and write them."""
    groups = []
    for heading, jobs in sweep.views:
        finished_jobs = [(cell, stage) for cell, stage in jobs if stage.key in finished]
        for group in results.collect_scores(finished_jobs, store):
            if heading:
                group.title = f"{heading}, {group.title}"
            groups.append(group)
    if not groups:
        return
    markdown = score_table.format_score_markdown(groups)
    write_atomic(store.root / "table.md", markdown)
    write_atomic(store.root / "table.csv", score_table.format_score_csv(groups))
    if console.is_terminal:
        for group in groups:
            console.print(*score_table.make_screen_tables(group, console.width), sep="")
    else:
        print_plain(console, markdown)
    print_plain(console, f"{store.root / 'table.md'}  {store.root / 'table.csv'}  {store.root / 'cells'}")


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
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
