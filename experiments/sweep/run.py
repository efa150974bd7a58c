"""Runs a sweep and returns what came of it: `slothkit.sweep`, on which the command line is a thin layer.

results = sweep("compressor=sap,avg_pool", seed=[0, 1], finetune={"epochs": 1})
"""

import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from compressors.errors import UsageError, quote
from compressors.key_value import join_settings, parse_settings, quote_text
from compressors.setting_fields import collect_settings, format_value
from experiments.config.schema import Config
from experiments.config.settings import takes_list, takes_mapping
from experiments.runtime.bars import create_reporter
from experiments.runtime.files import open_draft, write_atomic
from experiments.runtime.progress import Reporter
from experiments.runtime.provenance import declare_command
from experiments.stages.runners import find_runner
from experiments.store import results
from experiments.store.plan import Stage
from experiments.store.results import ScoreGroup
from experiments.store.run_names import name_group
from experiments.store.store import StageRunner, Store
from experiments.sweep import score_table
from experiments.sweep.checks import check_model_sizes, check_request, list_data_notes
from experiments.sweep.comparison import find_comparison
from experiments.sweep.options import LaunchOptions
from experiments.sweep.request import SweepRequest, read_request
from experiments.sweep.results import CellResult, CellsFailed, SweepResults
from experiments.sweep.scheduler import CellOutcomes, launch_cells
from experiments.sweep.side_by_side import choose_launch

if TYPE_CHECKING:
    from experiments.stages.training.node_link import NodeLink


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
    others. Without launch.workers and several devices all runs in this process; with them a script calls
    it below `if __name__ == "__main__":`, as the other processes import it.
    With trainer.nodes node 0 has the results, the others none.
    """
    words = make_words(settings, values)
    declare_command(f"slothkit sweep {shlex.join(words)}")
    request = run_here(read_request(parse_settings(words)))
    store = open_store(request, find_runner)
    reporter = Reporter() if quiet else create_reporter(Console())
    sweep_results = run_request(request, store, reporter, check_model_sizes)
    if sweep_results.failed:
        raise CellsFailed(sweep_results)
    return sweep_results


def run_here(request: SweepRequest) -> SweepRequest:
    """The request with one worker where it names none: what a script or notebook has registered itself,
    workers would not have."""
    if request.launch.workers is not None:
        return request
    return replace(request, launch=replace(request.launch, workers=1))


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
    with a cell, before any runs; cells that failed are told of in the results. Where several nodes run the
    request, node 0 does all this and the others train with it."""
    if request.nodes == 1:
        refuse_lone_sweeps()
        return run_cells(request, store, reporter, check)
    # read when torch is imported: a node that has gone is one line, not a page of frames
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from experiments.stages.training import node_link

    with node_link.join(request.nodes) as link:
        if link.node.rank == 0:
            return run_cells(request, store, reporter, check, link)
        with reporter as report:
            follow_cells(request, store, report, check, link)
        return SweepResults(store.root, [], [], [])


def refuse_lone_sweeps() -> None:
    """UsageError where torchrun has started several processes that know nothing of each other."""
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ["WORLD_SIZE"] != "1":
        raise UsageError(
            f"trainer.nodes=1: torchrun has started {os.environ['WORLD_SIZE']} processes; for several nodes "
            "set trainer.nodes and --nproc-per-node=1, for one start the command without torchrun"
        )


def run_cells(
    request: SweepRequest,
    store: Store,
    reporter: AbstractContextManager[Reporter],
    check: Callable[[Config], None],
    link: "NodeLink | None" = None,
) -> SweepResults:
    """What the node does that writes; `link`: to the others."""
    finished_before = {stage.key for _, stage in request.jobs if store.is_finished(stage)}
    with store.open_root():
        with reporter as store.report:
            check_request(request, store, check)
            for note in list_data_notes(request):
                store.report.write_note(note)
            if link is not None:
                store.report.write_note(f"waiting for {request.nodes - 1} other node(s)")
                meet_nodes(request, store, link)
            comparison = find_comparison(request.jobs, store)
            find_plan = comparison.make_plan_finder(request.jobs)
            comparison.announce_duration(request.jobs, find_plan)
            launch = choose_launch(request.jobs, request.launch, store, find_plan)
            announce_workers(request.launch, launch, store.report)
            outcomes = launch_cells(request.jobs, store, launch, comparison.tell)
        sweep_results = collect_results(request, outcomes, store)
        if sweep_results.groups:
            write_atomic(sweep_results.table, score_table.format_score_markdown(sweep_results.groups))
            write_atomic(
                sweep_results.table.with_suffix(".csv"), score_table.format_score_csv(sweep_results.groups)
            )
            if outcomes.finished - finished_before:
                publish_sweep_table(request, sweep_results)
    return sweep_results


def announce_workers(asked: LaunchOptions, chosen: LaunchOptions, report: Reporter) -> None:
    """Tell of workers that nobody has asked for."""
    if asked.workers is None and chosen.workers != 1:
        report.write_note(
            f"{chosen.workers} cells at once, one thread each: sooner here than one after another with all "
            "cores (launch.workers=1)"
        )


def meet_nodes(request: SweepRequest, store: Store, link: "NodeLink") -> None:
    """Node 0: UsageError unless all nodes have come, plan the same, and see the output directory."""
    from experiments.stages import follow  # which imports torch

    plan = follow.describe_plan([stage for _, stage in request.jobs])
    file = open_draft(store.root / "nodes")
    try:
        link.meet_others({**plan, "file": file.name})
    finally:
        file.unlink(missing_ok=True)


def follow_cells(
    request: SweepRequest,
    store: Store,
    report: Reporter,
    check: Callable[[Config], None],
    link: "NodeLink",
) -> None:
    """Another node: train with node 0 until its sweep has ended. UsageError where one of them cannot begin
    or has given up."""
    from experiments.stages import follow  # as above

    plan = link.hear_plan()
    last_stages = [stage for _, stage in request.jobs]
    try:
        check_request(request, store, check)
        fault = follow.find_difference(plan, follow.describe_plan(last_stages), link.node.rank)
        if not fault and not follow.see_path(store.root / plan["file"]):
            fault = f"out={store.root}: node {link.node.rank} does not see what node 0 writes there; share it"
    except UsageError as error:
        fault = f"node {link.node.rank}: {error}"
    link.answer_plan(fault)
    report.write_note(f"node {link.node.rank} follows node 0")
    stages: dict[str, Stage] = {}
    for last_stage in last_stages:
        for stage in last_stage.collect_stages().values():
            stages.setdefault(stage.name, stage)
    follow.follow(link, stages, store.root, report)


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
                group.questions = f"{heading}, {group.questions}"
            groups.append(group)
    cells = []
    for cell, stage in request.jobs:
        if stage.key in outcomes.finished:
            cells.append(CellResult(cell, stage.key, results.locate_cell_folder(cell, stage, store)))
    return SweepResults(store.root, groups, cells, outcomes.failed, request.left_out)
