"""Draws weights over patches onto their picture."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from connectors.tiling import Tiling
from experiments.figures.style import escape_dollars
from experiments.inspection.attention import AttentionRecord

PANEL_INCHES = 2.6  # inches along a picture's longer side
LINE_INCHES, GAP_INCHES = 0.17, 0.1  # inches of a line of words, and between panels
DENSITY_POINTS = 384  # points along the longer side at which weights are drawn
FADED_SHARE = 0.4  # share of white in a picture below weights
WEIGHT_COLOUR = (0.78, 0.05, 0.12)
ColumnPanels = list[tuple[str, Tensor | None]]  # (caption, weights or None) of a column's panels


def draw_attention(
    picture: Image.Image, looks: Sequence[AttentionRecord], tiling: Tiling, heads: bool = False
) -> Figure:
    """The picture, the compressor's weights, and EmbQ's for each of `looks`, which are all at this picture;
    with `heads` each head's below their mean."""
    columns = arrange_columns(looks, heads)
    rows = max(len(panels) for _, panels in columns)
    width, height = (PANEL_INCHES * side / max(picture.size) for side in picture.size)
    top = LINE_INCHES * (max(title.count("\n") for title, _ in columns) + 1.5)
    across, down = (
        GAP_INCHES + len(columns) * (width + GAP_INCHES),
        top + rows * (height + LINE_INCHES),
    )  # inches
    figure = Figure((across, down), dpi=150)
    for x, (title, panels) in enumerate(columns):
        for y, (caption, weights) in enumerate(panels):
            corner = GAP_INCHES + x * (width + GAP_INCHES), down - top - height - y * (height + LINE_INCHES)
            axes = figure.add_axes((corner[0] / across, corner[1] / down, width / across, height / down))
            show_picture(axes, picture, 0 if weights is None else FADED_SHARE)
            if weights is not None:
                overlay_weights(axes, compute_density(weights.numpy(), tiling, *picture.size), picture)
            axes.text(0.5, -0.015, caption, transform=axes.transAxes, fontsize=7, ha="center", va="top")
            if y == 0:
                axes.set_title(title, fontsize=8, linespacing=1.35, pad=4)
    return figure


def arrange_columns(looks: Sequence[AttentionRecord], heads: bool) -> list[tuple[str, ColumnPanels]]:
    """(title, panels) from left to right. A compressor that reads the question has a column for each."""
    first, *others = (each.compressor for each in looks)
    aware = first is not None and any(other is None or not first.equal(other) for other in others)
    asked = aware or any(each.queries for each in looks)  # else no column has a question
    bare = ("the picture" if asked else "\n".join(map(format_answer, looks)), None)
    own = [] if first is None or aware else [(f"{looks[0].name}: weights", first)]
    if len(looks[0].queries) > 1 or heads:  # high columns: these two stand below each other
        columns = [("", [bare, *own])]
    else:
        columns = [(title, [("", weights)]) for title, weights in (bare, *own)]
    for each in looks:
        panels = [(f"{each.name}: weights", each.compressor)] if aware else []
        for name, weights in each.queries.items():
            panels.append((f"{name}, mean of {len(weights)} heads", weights.mean(0)))
            if heads:
                panels += [(f"{name}, head {i}", head) for i, head in enumerate(weights, 1)]
        if panels:
            columns.append((format_answer(each), panels))
    return columns


def format_answer(look: AttentionRecord) -> str:
    """A question with the model's answer."""
    question = "\n".join(textwrap.wrap(look.question, 40)[:3])
    answer = textwrap.shorten(look.answer, 30, placeholder="...") or "(nothing)"
    return f"{escape_dollars(question)}\n" + r"$\bf{answer:}$ " + escape_dollars(answer)


def show_picture(axes: Axes, picture: Image.Image, faded: float = 0.0) -> None:
    """A picture without ticks, in pixels, mixed with white."""
    pixels = np.asarray(picture.convert("RGB")) / 255
    axes.imshow(pixels + faded * (1 - pixels), extent=(0, picture.width, picture.height, 0))
    axes.set_axis_off()


def overlay_weights(axes: Axes, weights: np.ndarray, picture: Image.Image) -> None:
    """Weights (h, w) over a picture's area as a colour, the more opaque the more weight."""
    opacity = 0.8 * weights / max(weights.max(), 1e-12)
    colour = np.broadcast_to(WEIGHT_COLOUR, (*weights.shape, 3))
    axes.imshow(
        np.dstack([colour, opacity]), interpolation="nearest", extent=(0, picture.width, picture.height, 0)
    )


def compute_density(weights: np.ndarray, tiling: Tiling, width: int, height: int) -> np.ndarray:
    """(crops, H, W) -> weight per area at points of the whole picture, its longer side SAMPLES points.

    The first crop is the whole picture; tiles lie on the picture padded to their shape."""
    scale = DENSITY_POINTS / max(width, height)
    x = (np.arange(max(1, round(width * scale))) + 0.5) / scale
    y = (np.arange(max(1, round(height * scale))) + 0.5) / scale
    found = sample_weights(weights[0], x / width, y / height) / (width * height)
    if len(weights) == 1:
        return found
    rows, columns = tiling.grid(width, height)
    (wide, high), corner = tiling.padding(width, height)
    tiles = np.block([[*weights[1 + row * columns : 1 + (row + 1) * columns]] for row in range(rows)])
    x, y = x + corner[0], y + corner[1]
    return found + sample_weights(tiles, x / wide, y / high) / (wide * high)


def sample_weights(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W) at (len(y), len(x)) points from 0 to 1, times the number of patches: per area."""
    rows, columns = ((n * at).astype(int).clip(0, n - 1) for n, at in zip(weights.shape, (y, x)))
    return weights[np.ix_(rows, columns)] * weights.size
