"""What the command line asks for: cells, the tables they are shown in, how they are launched."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compressors.errors import UsageError
from compressors.registry import conform
from experiments.config import tables
from experiments.config.cells import Cell, make_blind_cells, make_cells
from experiments.config.overrides import parse_value, take_single_value, take_values
from experiments.config.trained import settle_named_cells
from experiments.runtime.memory import begin_request
from experiments.store.plan import Stage, plan_stages
from experiments.sweep.options import LaunchOptions, take_launch_options
from experiments.sweep.studies import find_study_folder, read_finished_keys

# what the line of a sweep may say beside the settings of cells and launchers
REQUEST_SETTINGS = ("table", "rows", "blind", "earlier")

CellJob = tuple[Cell, Stage]  # a cell, and the stage that evaluates it


@dataclass(frozen=True)
class SweepRequest:
    """`jobs`: each cell once, with the stage that evaluates it. `views`: heading and rows of each table that
    is shown; a cell may stand in several of them. `left_out`: how many cells an earlier report has. `nodes`:
    how many machines train together."""

    jobs: list[CellJob]
    views: list[tuple[str, list[CellJob]]]
    launch: LaunchOptions
    left_out: int = 0
    nodes: int = 1


def read_request(settings: Mapping[str, list[str]]) -> SweepRequest:
    """The request of a command line, whose settings are given as key -> alternatives."""
    begin_request()
    axes = dict(settings)
    blind = take_blind(axes)
    earlier = take_single_value(axes, "earlier")
    reported_keys: set[str] = set()
    if earlier is not None:
        reported_keys = read_finished_keys(find_study_folder(Path(earlier)))
    launch = take_launch_options(axes)
    table_names = take_values(axes, "table")
    row_labels = tables.take_row_labels(axes, table_names)
    for name in ("out", "trainer.nodes"):
        take_single_value(dict(axes), name)  # from a copy: it is a cell's setting too, but no axis
    jobs: dict[str, CellJob] = {}
    views: list[tuple[str, list[CellJob]]] = []
    left_out: set[str] = set()
    for heading, cells in list_cells_by_table(table_names, row_labels, axes):
        rows: dict[tuple, CellJob] = {}
        if blind:
            cells = [*cells, *make_blind_cells(cells)]
        for cell in cells:
            settle_named_cells(cell.config)
            stage = plan_stages(cell.config)
            if stage.key in reported_keys:
                left_out.add(stage.key)
                continue
            # a table may show one cell in several rows; a product of overrides shows it once
            row = cell.row if table_names else ()
            first_cell, _ = rows.setdefault((stage.key, row), (cell, stage))
            if not cell.config.blind:
                refuse_alike_rows(first_cell, cell, axes)
            jobs.setdefault(stage.key, (cell, stage))
        views.append((heading, list(rows.values())))
    if not jobs and not left_out:
        raise UsageError(f"table={','.join(table_names or [])}: none of its rows has a cell here")
    if not jobs:
        raise UsageError(
            f"earlier={earlier}: that report has all {len(left_out)} cells; python -m ablations.report "
            "shows them, with the same table= and earlier="
        )
    check_out(cell for cell, _ in jobs.values())
    nodes = find_node_count(list(jobs.values()), launch)
    return SweepRequest(list(jobs.values()), views, launch, len(left_out), nodes)


def find_node_count(jobs: list[CellJob], launch: LaunchOptions) -> int:
    """How many machines train the cells together. UsageError where cells differ in it, or where workers would
    compute them."""
    counts = sorted({cell.config.trainer.nodes for cell, _ in jobs})
    if len(counts) > 1:
        raise UsageError(f"trainer.nodes={','.join(map(str, counts))}: takes one value")
    count = counts[0]
    if count > 1 and not launch.in_process:
        raise UsageError(
            f"trainer.nodes={count}: several nodes train one cell after another, without workers; leave out "
            "launch, launch.workers and launch.threads, and start the command itself with srun or torchrun"
        )
    return count


def refuse_alike_rows(cell: Cell, other: Cell, axes: Mapping[str, list[str]]) -> None:
    """UsageError for two rows that are called otherwise but are one cell: by a setting that no result shows,
    such as the number of processes."""
    if cell.label == other.label:
        return
    for path, _ in sorted(set(cell.row) ^ set(other.row)):
        values = ",".join(axes[path])
        raise UsageError(f"{path}={values}: changes no result, so that its rows are one; give one value")


def check_out(cells: Iterable[Cell]) -> None:
    """UsageError for cells of several output directories: a sweep has one."""
    folders = sorted({cell.config.out for cell in cells})
    if len(folders) > 1:
        raise UsageError(f"out={','.join(folders)}: takes one value; leave it out of rows and presets")


def take_blind(axes: dict[str, list[str]]) -> bool:
    """blind=, taken out of the axes: whether each table has a row that sees no image."""
    text = take_single_value(axes, "blind", "true")
    assert text is not None  # it has a default
    blind: bool = conform(parse_value(text, "blind"), bool, "blind")
    return blind


def list_cells_by_table(
    table_names: list[str] | None, row_labels: list[str] | None, axes: dict[str, list[str]]
) -> list[tuple[str, list[Cell]]]:
    """Heading and cells of each table, or of the product of all settings where no table is named.
    `row_labels`: of these rows alone. UsageError for a label that no table has."""
    if not table_names:
        return [("", make_cells(axes))]
    cells_by_table = []
    for table in tables.select_rows(tables.load_table_files(table_names, axes, row_labels), row_labels):
        cells: list[Cell] = []
        for row in table.rows:
            if row.absent and row_labels is not None:
                raise UsageError(f"rows={row.label}: has no cell in {table.heading}: {row.absent}")
            cells += row.cells
        if cells:
            cells_by_table.append((table.heading, cells))
    return cells_by_table
