"""Adds seeds to a table until its claims are decided: `python -m ablations.decide table=3 limit=10`.

Exit code 0: each claim is decided, or no look within the limit would decide it; 1: a cell failed; 2: bad
input or a full disk, one line says which; 130: Ctrl-C.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ablations.claims import SEED_LIMIT
from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.key_value import join_settings, quote_text
from compressors.setting_fields import setting
from compressors.spelling import spell_commands

# the rest is imported where it is needed: --help and a misspelt line would otherwise wait for it


@dataclass(frozen=True)
class DecideOptions:
    """Settings of the command itself; all others are those of the cells and of the launcher."""

    table: str = setting("", "a table of the project by name, or the path of a YAML file")
    first: int = setting(3, "seeds at the first look", low=2)
    limit: int = setting(SEED_LIMIT, "seeds at the last look", low=2)
    earlier: Path | None = setting(
        None, "cells that are not finished below out= as the report in DIR has them"
    )
    to: Path | None = setting(None, "directory to write decided-TABLE.md to (OUT/report)")


COMMAND = Command(
    usage="python -m ablations.decide table=NAME [first=3] [limit=10] [KEY=VALUE ...] [--plan]",
    description="""\
Runs a table's rows at the first seeds, judges its claims, and runs the rows of those that are not decided
at twice the seeds, until each is decided or the limit is reached. The looks are fixed by first= and limit=,
and share the 5 % that one look may be wrong, so that looking often decides no more claims by chance. Claims
that no look within the limit would decide, if differences stay what they are, get no more seeds. The same
command goes on where it stopped.

  --plan        show the looks and what the next of them would run
  KEY=VALUE     settings and knobs, as for the sweep; launch.workers=auto""",
    options=DecideOptions,
    overrides=True,
    flags=("--plan",),
    elsewhere="choose another directory with to=DIR",
    interrupted="interrupted; the same command goes on where it stopped",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_decide, arguments)


def run_decide(line: CommandLine) -> int:
    """The command, with its exceptions."""
    from rich.console import Console

    from ablations.claims.looks import plan_looks
    from ablations.deciding import TableDecider, decide_claims, describe_looks
    from ablations.looks_file import add_looks
    from ablations.writing.grids.word_grid import WordGrid
    from ablations.writing.markdown import render_markdown_table
    from ablations.writing.screen import render_screen_tables
    from experiments.config.overrides import take_single_value
    from experiments.config.schema import Config
    from experiments.runtime.files import write_atomic
    from experiments.store.store import Store
    from experiments.sweep import __main__ as sweep_command
    from experiments.sweep.options import take_launch_options

    options: DecideOptions = line.options
    axes = dict(line.overrides)
    is_plan = "--plan" in line.flags
    check_decide_options(options, axes)
    words = join_settings({"table": [quote_text(options.table)], "blind": ["false"], **axes})
    if options.earlier is not None:
        words += join_settings({"earlier": [quote_text(str(options.earlier))]})
    root = Path(take_single_value(axes, "out") or Config().out)
    axes["out"] = [quote_text(str(root))]
    take_launch_options(axes)  # the sweep's; what is left are the cells' settings
    console = Console()
    decider = TableDecider(options.table, axes, Store(root), options.earlier)
    folder = options.to or root / "report"
    target = folder / f"decided-{Path(options.table).stem}.md"

    def run_cells(labels: Sequence[str], seeds: Sequence[int]) -> int | None:
        seed_words = [str(seed) for seed in seeds]
        axes_of_rows = {"rows": list(map(quote_text, labels)), "seed": seed_words}
        sweep_words = [*words, *join_settings(axes_of_rows)]
        typed = f"python -m experiments.sweep {shlex.join(sweep_words)}"
        console.print(spell_commands(typed), soft_wrap=True, markup=False, highlight=False)
        if not is_plan:
            return sweep_command.main(sweep_words)
        return sweep_command.main([*sweep_words, "--plan"]) or None

    def show_decisions(grid: WordGrid) -> None:
        if not is_plan:
            add_looks(folder, decider.looks)
        console.print(*render_screen_tables(grid, console.width), sep="")
        if not is_plan:
            write_atomic(target, render_markdown_table(grid))

    if not is_plan:
        add_looks(folder, {})  # a folder or looks that cannot be used are told before any training
    looks = plan_looks(options.first, options.limit)
    console.print(describe_looks(looks), soft_wrap=True, markup=False, highlight=False)
    exit_code = decide_claims(decider, looks, run_cells, show_decisions)
    if exit_code == 0 and not is_plan:
        console.print(str(target), soft_wrap=True, markup=False, highlight=False)
    return exit_code


def check_decide_options(options: DecideOptions, axes: dict[str, list[str]]) -> None:
    """UsageError for what cannot be decided."""
    if not options.table:
        raise UsageError("table=: name the table whose claims are to be decided, such as table=3")
    if "seed" in axes:
        raise UsageError(f"seed={','.join(axes['seed'])}: seeds are what is added; set first= and limit=")
    for name in ("rows", "blind"):
        if name in axes:
            raise UsageError(
                f"{name}={','.join(axes[name])}: is no setting here: what runs are the rows of open claims; "
                "leave it out"
            )
    if options.limit < options.first:
        raise UsageError(f"limit={options.limit}: fewer seeds than first={options.first}")
    for key, values in axes.items():
        if len(values) > 1:
            raise UsageError(f"{key}={','.join(values)}: takes one value here; decide each by itself")


if __name__ == "__main__":
    sys.exit(main())
