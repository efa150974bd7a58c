"""What pictures of numbers have in common: colours, bare axes, SVG that is the same each time."""

import io
from typing import Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

GREY = "#8a8f98"
BLUE = "#2f5fa7"
ORANGE = "#c7661a"


def render_svg(figure: Figure) -> str:
    """The same bytes for the same picture."""
    out = io.StringIO()
    # ids are hashed with a salt that is random otherwise; text as paths looks alike without our fonts
    with matplotlib.rc_context({"svg.hashsalt": "slothkit", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def strip_axes(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """No box; light lines along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e3e5e9", linewidth=0.8)
    axes.set_axisbelow(True)  # the grid behind bars and points
    axes.tick_params(labelsize=8)


def escape_dollars(words: str) -> str:
    """Words as they stand, dollars and all: matplotlib would read a formula between two of them."""
    return words.replace("$", r"\$")
