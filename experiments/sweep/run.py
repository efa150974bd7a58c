"""Runs a sweep and returns what came of it: `slothkit.sweep`, on which the command line is a thin layer.

results = sweep("compressor=sap,avg_pool", seed=[0, 1], finetune={"epochs": 1})
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from numbers import Number
from pathlib import Path

from rich.console import Console

from compressors.command_line import (
    collect_settings,
    format_value,
    join_settings,
    parse_settings,
    quote_text,
)
from compressors.errors import UsageError, quote
from experiments.config.schema import Config
from experiments.config.settings import takes_list, takes_mapping
from experiments.runtime.bars import create_reporter
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter
from experiments.runtime.provenance import declare_command
from experiments.stages.runners import find_runner
from experiments.store import results
from experiments.store.results import ScoreGroup
from experiments.store.run_names import name_group
from experiments.store.store import StageRunner, Store
from experiments.sweep import score_table
from experiments.sweep.checks import check_cell, check_model_sizes, list_unlike_cells
from experiments.sweep.comparison import find_comparison
from experiments.sweep.request import SweepRequest, read_request
from experiments.sweep.results import CellResult, CellsFailed, SweepResults
from experiments.sweep.scheduler import CellOutcomes, launch_cells


def sweep(*settings: str, quiet: bool = False, **values: object) -> SweepResults:
    """Train and evaluate cells, as `python -m experiments.sweep` does with the same settings; what is
    finished below `out` is taken from there.

    settings   KEY=VALUE as on the command line, one each: "compressor=sap,avg_pool", "embq.at=[2,4],3"
    quiet      no progress
    values     the same by name: a list or range has the alternatives, a mapping a section's settings or a
               part's knobs (finetune={"epochs": 1}, sap={"rate": 4}); text reads as on the command line; a
               Path, and text in a list or mapping, is taken as it is: out=Path("a, b").
               Where the setting is a list itself, a list is its one value and a list of lists has the
               alternatives: trainer={"devices": [0, 2]}, data={"train": [["a.json"], ["a.json", "b.json"]]}

    UsageError for bad input, before any cell runs; CellsFailed where cells failed, with the results of the
    others. With launch.workers a script calls it below `if __name__ == "__main__":`, as workers import it.
    """
    words = make_words(settings, values)
    declare_command(f"slothkit sweep {shlex.join(words)}")
    request = read_request(parse_settings(words))
    store = open_store(request, find_runner)
    reporter = Reporter() if quiet else create_reporter(Console())
    found = run_request(request, store, reporter, check_model_sizes)
    if found.failed:
        raise CellsFailed(found)
    return found


def make_words(settings: tuple[str, ...], values: Mapping[str, object]) -> list[str]:
    """The command line that says what a call of `sweep` does."""
    for setting in settings:
        if not isinstance(setting, str):
            raise UsageError(f"{setting!r}: expected 'key=value', or a value by name: seed=[0, 1]")
    words = list(settings)
    for path, texts in spell_values("", values):  # one by one: what is given twice is refused as it is there
        words += join_settings({path: texts})
    return words


def spell_values(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    """(KEY, its alternatives as typed) of values by name; a mapping is a section, or a setting's value."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and path not in collect_settings(Config) and not takes_mapping(path):
            yield from spell_values(f"{path}.", value)
        elif isinstance(value, str):
            yield path, [value]
        elif isinstance(value, (list, tuple, range)):
            yield path, [spell_value(path, item) for item in list_alternatives(path, value)]
        else:
            yield path, [spell_value(path, value)]


def list_alternatives(path: str, values: Sequence[object]) -> list[object]:
    """What a list by name stands for: the alternatives, or one value of a setting that is a list."""
    has_lists = any(isinstance(item, (list, tuple)) for item in values)
    if not isinstance(values, range) and not has_lists and takes_list(path):
        return [values]
    if not values:
        raise UsageError(f"{path}={values!r}: no value; give one at least")
    return list(values)


def spell_value(path: str, value: object) -> str:
    """One value as it is typed. UsageError for what cannot be."""
    if isinstance(value, (str, Path)):
        return quote_text(str(value))
    if isinstance(value, (list, tuple)):
        return f"[{','.join([spell_item(path, item) for item in value])}]"
    if isinstance(value, Mapping):
        items = [f"{spell_item(path, key)}: {spell_item(path, item)}" for key, item in value.items()]
        return f"{{{','.join(items)}}}"
    if value is not None and not isinstance(value, Number):  # which bools are, and numbers of NumPy
        raise UsageError(
            f"{path}={quote(repr(value))}: of type {type(value).__name__}; give text, a number, True, False, "
            "None, a Path, a list or a mapping"
        )
    return format_value(value)


def spell_item(path: str, value: object) -> str:
    """One item of a list or mapping; a text keeps what YAML would read as something else: "7", "a: b"."""
    if isinstance(value, (str, Path)):
        escaped_text = str(value).replace("'", "''")
        return f"'{escaped_text}'"
    return spell_value(path, value)


def open_store(request: SweepRequest, runner: Callable[[str], StageRunner]) -> Store:
    """The store of a request, below its output directory."""
    first_cell, _ = request.jobs[0]  # all cells have one output directory
    return Store(Path(first_cell.config.out), runner=runner)


def run_request(
    request: SweepRequest,
    store: Store,
    reporter: AbstractContextManager[Reporter],
    check: Callable[[Config], None],
) -> SweepResults:
    """Check and run all cells, publish them, and write table.md and table.csv. UsageError for what is wrong
    with a cell, before any runs; cells that failed are told of in the results."""
    finished_before = {stage.key for _, stage in request.jobs if store.find_status(stage) == "done"}
    with store.open_root():
        with reporter as store.report:
            for cell in list_unlike_cells(request.jobs, store):
                check_cell(cell, request.launch, check)
            comparison = find_comparison(request.jobs, store)
            comparison.announce_duration(request.jobs)
            outcomes = launch_cells(request.jobs, store, request.launch, comparison.tell)
        found = collect_results(request, outcomes, store)
        if found.groups:
            write_atomic(found.table, score_table.format_score_markdown(found.groups))
            write_atomic(found.table.with_suffix(".csv"), score_table.format_score_csv(found.groups))
            if outcomes.finished - finished_before:
                publish_sweep_table(request, found)
    return found


def publish_sweep_table(request: SweepRequest, found: SweepResults) -> None:
    """Hand the table to the logger that has the sweep's curves."""
    first_cell, _ = request.jobs[0]
    logger = first_cell.config.trainer.logger
    if logger in ("csv", "none"):  # torch is not imported to do nothing
        return
    from experiments.stages.training import curves

    curves.publish_table(logger, name_group(found.root), found.root, found.table)


def collect_results(request: SweepRequest, outcomes: CellOutcomes, store: Store) -> SweepResults:
    """The results of what has finished, as the request shows them."""
    groups: list[ScoreGroup] = []
    for heading, jobs in request.views:
        finished_jobs = [(cell, stage) for cell, stage in jobs if stage.key in outcomes.finished]
        for group in results.collect_scores(finished_jobs, store):
            if heading:
                group.title = f"{heading}, {group.title}"
            groups.append(group)
    cells = []
    for cell, stage in request.jobs:
        if stage.key in outcomes.finished:
            cells.append(CellResult(cell, stage.key, results.locate_cell_folder(cell, stage, store)))
    return SweepResults(store.root, groups, cells, outcomes.failed, request.left_out)
