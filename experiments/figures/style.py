"""What pictures of numbers have in common: colours, bare axes, files that are the same each time."""

import io
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

GREY = "#8a8f98"
BLUE = "#2f5fa7"
ORANGE = "#c7661a"
POINT_STYLE: dict[str, Any] = {"fmt": "o", "markersize": 5, "elinewidth": 1, "capsize": 2}  # of errorbar
PNG_RESOLUTION = 200  # pixels per inch


def render_svg(figure: Figure) -> str:
    """The same bytes for the same picture."""
    out = io.StringIO()
    # ids are hashed with a salt that is random otherwise; text as paths looks alike without our fonts
    with matplotlib.rc_context({"svg.hashsalt": "slothkit", "svg.fonttype": "path"}):
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    return out.getvalue()


class PictureFiles(NamedTuple):
    """A picture for a page, for LaTeX, and for slides."""

    svg: str
    pdf: bytes
    png: bytes


def render_files(figure: Figure) -> PictureFiles:
    """A picture in each format, the same bytes for the same picture."""
    svg = render_svg(figure)  # first: drawing at another resolution moves its letters by a hair
    pdf = io.BytesIO()
    with matplotlib.rc_context({"pdf.fonttype": 42}):  # letters as text, which journals ask for
        FigureCanvasPdf(figure).print_pdf(
            pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None}
        )
    png = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(png, format="png", dpi=PNG_RESOLUTION, metadata={"Software": None})
    return PictureFiles(svg, pdf.getvalue(), png.getvalue())


def strip_axes(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """No box; light lines along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e3e5e9", linewidth=0.8)
    axes.set_axisbelow(True)  # the grid behind bars and points
    axes.tick_params(labelsize=8)


def escape_dollars(words: str) -> str:
    """Words as they stand, dollars and all: matplotlib would read a formula between two of them."""
    return words.replace("$", r"\$")
