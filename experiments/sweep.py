"""Trains, evaluates and prints a table: `python -m experiments.sweep compressor=sap,sap+embq seed=0,1`.

Exit code 0: all done; 1: a cell failed; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""
import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from compressors.errors import UsageError
from compressors.registry import conform
from experiments import results, table, usage
from experiments.cells import Cell, blind_cells, make_cells, make_rows, read_yaml
from experiments.config import Config
from experiments.files import write_atomic
from experiments.overrides import parse, value_of
from experiments.plan import Stage, plan
from experiments.plan_view import plan_tables
from experiments.progress import reporter
from experiments.stages import Runner, StageFailed, Store, runner

Job = tuple[Cell, Stage]


class Parser(argparse.ArgumentParser):
    """argparse whose errors are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (--help shows what there is)")


def check_model(config: Config) -> None:
    """What only a model's sizes can tell, raised as UsageError; imports torch and transformers."""
    from experiments import build

    build.check(config)


def main(arguments: Sequence[str] | None = None, runner: Callable[[str], Runner] = runner,
         check: Callable[[Config], None] = check_model) -> int:
    """The command; its exit code. `runner` computes stages, `check` looks at cells before anything runs."""
    try:
        return run(arguments, runner, check)
    except UsageError as error:
        return complain(str(error), 2)
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{reason}; free space there or choose another directory with out=DIR", 2)
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on where it stopped", 130)


def complain(text: str, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(text.split())}\n")
    return code


def run(arguments: Sequence[str] | None, runner: Callable[[str], Runner],
        check: Callable[[Config], None]) -> int:
    """The command, with its exceptions."""
    parser = Parser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("-h", "--help", action="store_true")
    options = parser.parse_intermixed_args(arguments)
    console = Console()
    if options.help:
        console.print(usage.text(), markup=False, highlight=False, soft_wrap=True)
        return 0
    jobs = make_jobs(options.overrides)
    store = Store(Path(jobs[0][0].config.out), runner=runner)
    if options.plan:
        for each in plan_tables(jobs, store):
            console.print(each)
        return 0
    with store.opened():
        with reporter(console) as store.report:
            for cell in unlike(jobs, store):
                check(cell.config)
            finished, failed = compute(jobs, store)
        show(finished, store, console)
    for cell, why in failed:
        console.print(f"failed: {cell.label} seed={cell.config.seed}: {why}", markup=False, soft_wrap=True)
    return 1 if failed else 0


def make_jobs(overrides: list[str]) -> list[Job]:
    """The cells that the command line asks for and what each of them needs; equal cells are one."""
    axes = parse(overrides)
    blind = conform(value_of(only(axes, "blind", "true"), "blind"), bool, "blind")
    name = only(axes, "table", "")
    only(dict(axes), "out", "")
    cells = table_cells(name, axes) if name else make_cells(axes)
    jobs: dict[str, Job] = {}
    for cell in [*cells, *(blind_cells(cells) if blind else ())]:
        stage = plan(cell.config)
        jobs.setdefault(stage.key, (cell, stage))
    return list(jobs.values())


def only(axes: dict[str, list[str]], key: str, default: str) -> str:
    """Take a key that has one value out of the axes."""
    values = axes.pop(key, [default])
    if len(values) > 1:
        raise UsageError(f"{key}={','.join(values)}: takes one value")
    return values[0]


def table_cells(name: str, axes: dict[str, list[str]]) -> list[Cell]:
    """The rows of a file {rows: [{label, overrides: [KEY=VALUE, ...]}]}; the command line wins."""
    folder = Path(find_spec("ablations").submodule_search_locations[0])
    there = sorted(p.stem.removeprefix("table") for p in folder.glob("table*.yaml"))
    path = Path(name) if name.endswith(".yaml") else folder / f"table{name}.yaml"
    if not path.is_file():
        raise UsageError(f"table={name}: no {path}; there are: {', '.join(there) or 'none yet'}")
    rows = read_yaml(path).get("rows")
    if not isinstance(rows, list) or not all(isinstance(r, dict) and "label" in r for r in rows):
        raise UsageError(f"{path}: expected rows: [{{label: ..., overrides: [KEY=VALUE, ...]}}, ...]")
    return make_rows([(str(row["label"]), parse(list(row.get("overrides", [])))) for row in rows], axes)


def unlike(jobs: list[Job], store: Store) -> list[Cell]:
    """Cells that are not finished, one for each shape of model."""
    return list({shape(cell): cell for cell, stage in jobs if store.status(stage) != "done"}.values())


def shape(cell: Cell) -> str:
    """What the sizes of a cell's model follow from."""
    config = cell.config
    return str((config.compressor, config.projector, config.parts, config.tower, config.llm, config.image))


def compute(jobs: list[Job], store: Store) -> tuple[list[Job], list[tuple[Cell, str]]]:
    """Run every cell; one that fails does not stop the others, and a failed stage is not tried twice."""
    finished, failed, broken = [], [], {}
    store.report.cells(len(jobs))
    for cell, stage in jobs:
        store.report.cell(f"{cell.label} seed={cell.config.seed}")
        why = next((broken[key] for key in stage.ancestors() if key in broken), None)
        if why is None:
            try:
                store.compute(stage)
                results.publish(cell, stage, store)
                finished.append((cell, stage))
            except StageFailed as error:
                why = broken[error.stage.key] = log(error, cell, store)
                store.report.note(f"failed: {why}")
        if why is not None:
            failed.append((cell, why))
    return finished, failed


def log(error: StageFailed, cell: Cell, store: Store) -> str:
    """Keep a failed cell's traceback; returns the line that points to it."""
    path = store.root / "failures" / f"{results.cell_name(cell)}.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(traceback.format_exception(error)))
    return f"{error}; see {path}"


def show(finished: list[Job], store: Store, console: Console) -> None:
    """Print the tables and write them."""
    if not finished:
        return
    groups = results.collect(finished, store)
    write_atomic(store.root / "table.md", table.markdown(groups))
    write_atomic(store.root / "table.csv", table.as_csv(groups))
    for group in groups:
        if console.is_terminal:
            console.print(*table.terminal(group, console.width), sep="")
    if not console.is_terminal:
        console.print(table.markdown(groups), markup=False, highlight=False, soft_wrap=True)
    console.print(f"{store.root / 'table.md'}  {store.root / 'table.csv'}  {store.root / 'cells'}",
                  markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
