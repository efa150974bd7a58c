"""What query modules add, as a picture."""

from matplotlib.figure import Figure

from ablations.outcomes import ReportTable
from ablations.writing.grids.gains_grid import is_decided, judge_gains, name_modules
from ablations.writing.plots.intervals import IntervalRow, draw_intervals
from experiments.figures.style import GREY, ORANGE


def draw_gain(table: ReportTable) -> Figure | None:
    """What the query module adds, the largest first. None if fewer than two rows have a partner."""
    gains = sorted(judge_gains(table), key=lambda gain: -gain.estimate)
    if not gains:
        return None
    rows = []
    for gain in gains:
        row = IntervalRow(
            name=gain.claim.text,
            low=gain.low,
            estimate=gain.estimate,
            high=gain.high,
            colour=ORANGE if is_decided(gain) else GREY,
            hollow=gain.pairs[0].squares is None,
        )
        rows.append(row)
    title = f"{table.heading}: gain from {name_modules(gains)} by compressor"
    figure, axes = draw_intervals(6.4, title, rows)
    axes.set_xlabel(
        "percentage points that the query module adds; grey: may be none;\n"
        "open: one seed, an interval over questions alone",
        fontsize=9,
    )
    return figure
