"""Draws weights over patches onto their picture."""

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from connectors.tiling import Tiling
from experiments.figures.style import escape_dollars
from experiments.inspection.attention import AttentionRecord
from llm_adapters.orientation import convert_to_upright_rgb

PANEL_INCHES = 2.6  # along a picture's longer side
LINE_INCHES = 0.17  # of a line of words
CAPTION_INCHES = 2 * LINE_INCHES  # below each panel
GAP_INCHES = 0.1  # between panels
BAR_INCHES = 0.09  # height of the colour bar
DENSITY_POINTS = 384  # along the longer side, at which weights are drawn
FADED_SHARE = 0.4  # share of white in a picture below weights
MAX_WEIGHT_OPACITY = 0.8  # the picture stays visible below the largest weight
WEIGHT_COLOUR = (0.78, 0.05, 0.12)


class Panel(NamedTuple):
    """A picture with weights over it, (crops, H, W); None: the picture alone."""

    caption: str
    weights: Tensor | None


class Column(NamedTuple):
    """Panels below one another."""

    title: str
    panels: list[Panel]


def draw_attention(
    picture: Image.Image, records: Sequence[AttentionRecord], tiling: Tiling, heads: bool = False
) -> Figure:
    """The picture, the compressor's weights, and EmbQ's for each of `records`, which are all of this picture;
    with `heads` each head's below their mean. A colour bar tells what the colour means."""
    picture = convert_to_upright_rgb(picture)
    columns = arrange_columns(records, heads)
    rows = max(len(column.panels) for column in columns)
    width = PANEL_INCHES * picture.width / max(picture.size)
    height = PANEL_INCHES * picture.height / max(picture.size)
    title_lines = 1 + max(column.title.count("\n") for column in columns)
    top = LINE_INCHES * (title_lines + 0.5)
    figure_width = GAP_INCHES + len(columns) * (width + GAP_INCHES)
    bar_space = BAR_INCHES + 2.5 * LINE_INCHES  # two lines of words below it
    figure_height = top + rows * (height + CAPTION_INCHES) + bar_space
    figure = Figure((figure_width, figure_height), dpi=150)
    for x, column in enumerate(columns):
        panel_left = GAP_INCHES + x * (width + GAP_INCHES)
        for y, panel in enumerate(column.panels):
            bottom = figure_height - top - height - y * (height + CAPTION_INCHES)
            # matplotlib takes shares of the figure
            axes = figure.add_axes(
                (
                    panel_left / figure_width,
                    bottom / figure_height,
                    width / figure_width,
                    height / figure_height,
                )
            )
            draw_panel(axes, panel, picture, tiling)
            if y == 0:
                axes.set_title(column.title, fontsize=8, linespacing=1.35, pad=4)
    bar_bottom = (bar_space - BAR_INCHES) / figure_height
    last_left = figure_width - GAP_INCHES - width  # below the last panel, which has weights
    bar_box = (last_left / figure_width, bar_bottom, width / figure_width, BAR_INCHES / figure_height)
    meaning = "share of attention"
    if tiling.tiles > 1:
        meaning += " per area"  # a tile's patch covers less of the picture
    draw_colour_bar(figure.add_axes(bar_box), meaning)
    return figure


def draw_colour_bar(axes: Axes, meaning: str) -> None:
    """The colours of weights over white, from 0 to the largest of a panel."""
    lightest = (1.0, 1.0, 1.0)
    darkest = tuple(1 - MAX_WEIGHT_OPACITY * (1 - channel) for channel in WEIGHT_COLOUR)
    colours = LinearSegmentedColormap.from_list("weights", [lightest, darkest])
    bar = axes.figure.colorbar(ScalarMappable(cmap=colours), cax=axes, orientation="horizontal", ticks=[0, 1])
    bar.outline.set_linewidth(0.4)
    axes.set_xticklabels(["0", "the map's largest"], fontsize=7)
    axes.get_xticklabels()[0].set_horizontalalignment("left")
    axes.get_xticklabels()[1].set_horizontalalignment("right")
    axes.tick_params(length=2, width=0.4, pad=2)
    axes.set_xlabel(meaning, fontsize=7, labelpad=0)


def draw_panel(axes: Axes, panel: Panel, picture: Image.Image, tiling: Tiling) -> None:
    """One panel with its caption below it."""
    caption = panel.caption
    if panel.weights is None:
        show_picture(axes, picture)
    else:
        show_picture(axes, picture, FADED_SHARE)
        overlay_weights(axes, compute_density(panel.weights.numpy(), tiling, *picture.size), picture)
        if len(panel.weights) == 1:
            caption = f"{caption}\nlargest patch: {panel.weights.max().item():.1%}".strip()
    axes.text(0.5, -0.015, caption, transform=axes.transAxes, fontsize=7, ha="center", va="top")


def arrange_columns(records: Sequence[AttentionRecord], heads: bool) -> list[Column]:
    """Columns from left to right: the picture, the compressor, a column for each question.

    A compressor that reads the question has its weights in the column of each.
    """
    first = records[0].compressor
    reads_question = first is not None and any(
        record.compressor is None or not first.equal(record.compressor) for record in records[1:]
    )
    has_question_columns = reads_question or any(record.queries for record in records)
    picture_title = "the picture"
    if not has_question_columns:
        picture_title = "\n".join(map(format_answer, records))
    general_panels = [Panel(picture_title, None)]
    if first is not None and not reads_question:
        general_panels.append(Panel(f"{records[0].name}: weights", first))
    columns: list[Column] = []
    if len(records[0].queries) > 1 or heads:  # high columns: these two stand below each other
        columns.append(Column("", general_panels))
    else:
        for panel in general_panels:
            columns.append(Column(panel.caption, [Panel("", panel.weights)]))
    for record in records:
        panels = arrange_question_panels(record, reads_question, heads)
        if panels:
            columns.append(Column(format_answer(record), panels))
    return columns


def arrange_question_panels(record: AttentionRecord, with_compressor: bool, heads: bool) -> list[Panel]:
    """The panels that differ with the question, from top to bottom."""
    panels: list[Panel] = []
    if with_compressor:
        panels.append(Panel(f"{record.name}: weights", record.compressor))
    for name, weights in record.queries.items():
        panels.append(Panel(f"{name}, mean of {len(weights)} heads", weights.mean(0)))
        if heads:
            for number, head in enumerate(weights, 1):
                panels.append(Panel(f"{name}, head {number}", head))
    return panels


def format_answer(record: AttentionRecord) -> str:
    """A question with the model's answer."""
    question = "\n".join(textwrap.wrap(record.question, 40)[:3])
    answer = textwrap.shorten(record.answer, 30, placeholder="...") or "(nothing)"
    return f"{escape_dollars(question)}\n" + r"$\bf{answer:}$ " + escape_dollars(answer)


def show_picture(axes: Axes, picture: Image.Image, faded: float = 0.0) -> None:
    """A picture without ticks, in pixels, mixed with a share `faded` of white."""
    pixels = np.asarray(picture.convert("RGB")) / 255
    axes.imshow(pixels + faded * (1 - pixels), extent=(0, picture.width, picture.height, 0))
    axes.set_axis_off()


def overlay_weights(axes: Axes, weights: np.ndarray, picture: Image.Image) -> None:
    """Weights (h, w) over a picture's area as a colour, the more opaque the more weight."""
    largest = max(weights.max(), 1e-12)  # nobody divides by weights that are all 0
    opacity = MAX_WEIGHT_OPACITY * weights / largest
    colour = np.broadcast_to(WEIGHT_COLOUR, (*weights.shape, 3))
    layer = np.dstack([colour, opacity])  # (h, w, 4)
    axes.imshow(layer, interpolation="nearest", extent=(0, picture.width, picture.height, 0))


def compute_density(weights: np.ndarray, tiling: Tiling, width: int, height: int) -> np.ndarray:
    """(crops, H, W) -> (h, w), weight per area at points of the picture, DENSITY_POINTS along its long side.

    The first crop is the whole picture; tiles lie on the picture padded to their shape. Weight per area,
    since a tile's patch covers less of the picture than one of the whole.
    """
    scale = DENSITY_POINTS / max(width, height)
    # the middles of equal steps, in pixels
    x = (np.arange(max(1, round(width * scale))) + 0.5) / scale
    y = (np.arange(max(1, round(height * scale))) + 0.5) / scale
    density = sample_weights(weights[0], x / width, y / height) / (width * height)
    if len(weights) == 1:
        return density
    rows, columns = tiling.grid(width, height)
    (padded_width, padded_height), (offset_x, offset_y) = tiling.padding(width, height)
    # tiles come row by row after the whole picture
    tile_rows = [list(weights[1 + row * columns : 1 + (row + 1) * columns]) for row in range(rows)]
    tiles = np.block(tile_rows)
    tile_x = (x + offset_x) / padded_width
    tile_y = (y + offset_y) / padded_height
    tile_density = sample_weights(tiles, tile_x, tile_y)
    return density + tile_density / (padded_width * padded_height)


def sample_weights(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(H, W) at (len(y), len(x)) points from 0 to 1, times the number of patches: per area."""
    height, width = weights.shape
    rows = (height * y).astype(int).clip(0, height - 1)
    columns = (width * x).astype(int).clip(0, width - 1)
    return weights[np.ix_(rows, columns)] * weights.size
