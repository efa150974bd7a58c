"""What the command line asks for: cells, the tables they are shown in, how they are launched."""
from dataclasses import dataclass

from compressors.registry import conform
from experiments import tables
from experiments.cells import Cell, blind_cells, make_cells
from experiments.launch_options import Launch, take
from experiments.overrides import parse, take_one, value_of
from experiments.plan import Stage, plan

Job = tuple[Cell, Stage]


@dataclass(frozen=True)
class Request:
    """`jobs`: each cell once, with the stage that evaluates it. `views`: heading and rows of each table that
    is shown; a cell may stand in several of them."""

    jobs: list[Job]
    views: list[tuple[str, list[Job]]]
    launch: Launch


def read(overrides: list[str]) -> Request:
    """The request of a command line."""
    axes = parse(overrides)
    blind = conform(value_of(take_one(axes, "blind", "true"), "blind"), bool, "blind")
    launch, names = take(axes), axes.pop("table", None)
    take_one(dict(axes), "out")
    if names:
        found = [(t.heading, [c for row in t.rows for c in row.cells]) for t in tables.load_all(names, axes)]
    else:
        found = [("", make_cells(axes))]
    jobs: dict[str, Job] = {}
    views = []
    for heading, cells in found:
        rows: dict[tuple, Job] = {}
        for cell in [*cells, *(blind_cells(cells) if blind else ())]:
            stage = plan(cell.config)
            # a table may show one cell in several rows; a product of overrides shows it once
            rows.setdefault((stage.key, cell.row if names else ()), (cell, stage))
            jobs.setdefault(stage.key, (cell, stage))
        views.append((heading, list(rows.values())))
    return Request(list(jobs.values()), views, launch)
