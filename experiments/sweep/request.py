"""What the command line asks for: cells, the tables they are shown in, how they are launched."""

from dataclasses import dataclass
from pathlib import Path

from compressors.command_line import parse_settings
from compressors.errors import UsageError
from compressors.registry import conform
from experiments.config import tables
from experiments.config.cells import Cell, blind_cells, make_cells
from experiments.config.overrides import take_one, value_of
from experiments.store.earlier import reported
from experiments.store.plan import Stage, plan
from experiments.sweep.options import Launch, take

Job = tuple[Cell, Stage]


@dataclass(frozen=True)
class Request:
    """`jobs`: each cell once, with the stage that evaluates it. `views`: heading and rows of each table that
    is shown; a cell may stand in several of them. `left_out`: how many cells an earlier report has."""

    jobs: list[Job]
    views: list[tuple[str, list[Job]]]
    launch: Launch
    left_out: int = 0


def read(overrides: list[str]) -> Request:
    """The request of a command line."""
    axes = parse_settings(overrides)
    blind = conform(value_of(take_one(axes, "blind", "true"), "blind"), bool, "blind")
    earlier = take_one(axes, "earlier")
    known = reported(Path(earlier)) if earlier is not None else set()
    launch, names = take(axes), axes.pop("table", None)
    take_one(dict(axes), "out")
    if names:
        found = [(t.heading, [c for row in t.rows for c in row.cells]) for t in tables.load_all(names, axes)]
    else:
        found = [("", make_cells(axes))]
    jobs: dict[str, Job] = {}
    views, left_out = [], set()
    for heading, cells in found:
        rows: dict[tuple, Job] = {}
        for cell in [*cells, *(blind_cells(cells) if blind else ())]:
            stage = plan(cell.config)
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
    return Request(list(jobs.values()), views, launch, len(left_out))
