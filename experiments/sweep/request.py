"""What the command line asks for: cells, the tables they are shown in, how they are launched."""

from dataclasses import dataclass
from pathlib import Path

from compressors.command_line import parse_settings
from compressors.errors import UsageError
from compressors.registry import conform
from experiments.config import tables
from experiments.config.cells import Cell, make_blind_cells, make_cells
from experiments.config.overrides import parse_value, take_single_value
from experiments.store.plan import Stage, plan_stages
from experiments.sweep.options import LaunchOptions, take_launch_options
from experiments.sweep.studies import read_finished_keys

CellJob = tuple[Cell, Stage]


@dataclass(frozen=True)
class SweepRequest:
    """`jobs`: each cell once, with the stage that evaluates it. `views`: heading and rows of each table that
    is shown; a cell may stand in several of them. `left_out`: how many cells an earlier report has."""

    jobs: list[CellJob]
    views: list[tuple[str, list[CellJob]]]
    launch: LaunchOptions
    left_out: int = 0


def read_request(overrides: list[str]) -> SweepRequest:
    """The request of a command line."""
    axes = parse_settings(overrides)
    blind = conform(parse_value(take_single_value(axes, "blind", "true"), "blind"), bool, "blind")
    earlier = take_single_value(axes, "earlier")
    known = read_finished_keys(Path(earlier)) if earlier is not None else set()
    launch, names = take_launch_options(axes), axes.pop("table", None)
    take_single_value(dict(axes), "out")
    if names:
        found = [
            (t.heading, [c for row in t.rows for c in row.cells])
            for t in tables.load_table_files(names, axes)
        ]
    else:
        found = [("", make_cells(axes))]
    jobs: dict[str, CellJob] = {}
    views, left_out = [], set()
    for heading, cells in found:
        rows: dict[tuple, CellJob] = {}
        for cell in [*cells, *(make_blind_cells(cells) if blind else ())]:
            stage = plan_stages(cell.config)
            if stage.key in known:
                left_out.add(stage.key)
                continue
            # a table may show one cell in several rows; a product of overrides shows it once
            rows.setdefault((stage.key, cell.row if names else ()), (cell, stage))
            jobs.setdefault(stage.key, (cell, stage))
        views.append((heading, list(rows.values())))
    if not jobs:
        raise UsageError(
            f"earlier={earlier}: that report has all {len(left_out)} cells; python -m "
            "ablations.report shows them, with the same table= and earlier="
        )
    return SweepRequest(list(jobs.values()), views, launch, len(left_out))
