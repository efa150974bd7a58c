"""What models cost: `python -m experiments.efficiency`; --help tells how.

Exit code 0: done; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from compressors.command_line import run_guarded
from experiments.efficiency import options
from experiments.runtime.bars import create_reporter


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return run_guarded(lambda: run_efficiency(given), "choose another directory with --to DIR")


def run_efficiency(arguments: list[str]) -> int:
    """The command, with its exceptions."""
    given = options.read_efficiency_options(arguments)
    from experiments.efficiency import collect, machine, report  # torch: not for --help

    console = Console()
    command = f"python -m experiments.efficiency {shlex.join(arguments)}".strip()
    result = {"made": {"command": command, **machine.settle_machine(given)}, "rows": [], "training": []}
    with create_reporter(console) as told:
        if given.table1:
            result["rows"] = collect.measure_table1(given, told)
        elif given.train:
            result["training"] = collect.measure_training_stages(given, told)
        else:
            result["rows"] = collect.measure_cells(given, told)
    print_result_views(report.make_result_views(result), report.describe_result(result), console)
    if given.to:
        written = report.write_result(result, Path(given.to))
        console.print(*written, sep="  ", markup=False, highlight=False, soft_wrap=True)
    return 0


def print_result_views(views: list[tuple], title: str, console: Console) -> None:
    """Tables, each with its definitions: on a terminal drawn, else as Markdown."""
    from experiments.runtime.text_tables import format_markdown_table, make_word_table

    plain = {"sep": "\n", "markup": False, "highlight": False, "soft_wrap": True}
    console.print(title, **plain)
    for heading, words, notes in views:
        if console.is_terminal:
            console.print(make_word_table(words, title=heading))
        else:
            console.print(f"\n### {heading}\n", *format_markdown_table(words), **plain)
        console.print("", *notes, "", **plain)


if __name__ == "__main__":
    sys.exit(main())
