"""Draws where a compressor's tokens come from: all of them in one panel, then some one by one."""

import colorsys
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from experiments.inspection.attention_figure import FADED_SHARE, overlay_weights, show_picture

TOKEN_PANEL_INCHES = 1.75
TOKEN_GAP_INCHES = 0.06
TOKEN_TITLE_INCHES = 0.2
SHOWN_TOKENS = 3  # tokens that have a panel of their own
MAX_OPACITY = 0.85
ALIKE_TOLERANCE = 1e-5  # of the largest weight: float32's noise
GOLDEN_HUE_STEP = 0.618034  # of the colour circle: tokens that follow one another look unlike


class OriginsPanel(NamedTuple):
    """A picture with a layer of colours (H, W, 4) over it, or weights (H, W), or neither."""

    title: str
    colours: np.ndarray | None = None
    weights: Tensor | None = None


def draw_origins(picture: Image.Image, origins: Tensor, weights: Tensor | None) -> Figure:
    """Draw all tokens, some one by one, and the compressor's own weights.

    origins   (N, H, W), each token's share of the patches
    weights   (H, W), what the compressor itself says of all its tokens together; None: nothing
    """
    palette = make_palette(len(origins))
    panels = [OriginsPanel(f"all {len(origins)} tokens", paint_all_tokens(origins, palette))]
    for number in pick_example_tokens(len(origins)):
        panels.append(OriginsPanel(f"token {number + 1}", paint_token(origins[number], palette[number])))
    panels.append(make_weights_panel(weights))
    figure_width = TOKEN_GAP_INCHES + len(panels) * (TOKEN_PANEL_INCHES + TOKEN_GAP_INCHES)
    figure_height = TOKEN_PANEL_INCHES + TOKEN_TITLE_INCHES + TOKEN_GAP_INCHES
    figure = Figure((figure_width, figure_height), dpi=100)
    rows, columns = origins.shape[1:]
    for x, panel in enumerate(panels):
        panel_left = TOKEN_GAP_INCHES + x * (TOKEN_PANEL_INCHES + TOKEN_GAP_INCHES)
        # matplotlib takes shares of the figure
        axes = figure.add_axes(
            (
                panel_left / figure_width,
                TOKEN_GAP_INCHES / figure_height,
                TOKEN_PANEL_INCHES / figure_width,
                TOKEN_PANEL_INCHES / figure_height,
            )
        )
        show_picture(axes, picture, FADED_SHARE)
        axes.set_title(panel.title, fontsize=8, pad=3)
        if panel.colours is not None:
            extent = (0, picture.width, picture.height, 0)
            axes.imshow(panel.colours, interpolation="nearest", extent=extent)
        if panel.weights is not None:
            overlay_weights(axes, panel.weights.numpy(), picture)
        draw_patch_grid(axes, picture, rows, columns)
    return figure


def make_weights_panel(weights: Tensor | None) -> OriginsPanel:
    """The compressor's own weights; their title says if they tell nothing apart."""
    if weights is None:
        return OriginsPanel("tells no weights of its own")
    title = "its own weights"
    if weights.max() - weights.min() < ALIKE_TOLERANCE * weights.max():
        title += ", all alike"
    return OriginsPanel(title, weights=weights)


def make_palette(count: int) -> Tensor:
    """(N, 3): a colour for each token, hues around the circle, light and dark in turn."""
    colours = []
    for number in range(count):
        hue = number * GOLDEN_HUE_STEP % 1
        brightness = 0.95 if number % 2 else 0.7
        colours.append(colorsys.hsv_to_rgb(hue, 0.9, brightness))
    return torch.tensor(colours)


def pick_example_tokens(count: int) -> list[int]:
    """Tokens spread over the sequence, each once where there are few."""
    numbers = [int(count * (i + 0.5) / SHOWN_TOKENS) for i in range(SHOWN_TOKENS)]
    return list(dict.fromkeys(numbers))


def paint_all_tokens(origins: Tensor, palette: Tensor) -> np.ndarray:
    """(N, H, W) -> (H, W, 4): a patch has its tokens' colours, mixed by how much it counts for each.

    That is a share of what the token's first patch counts; a patch's opacity is the largest of its shares.
    """
    counts = origins / origins.amax((1, 2), keepdim=True)
    # nobody divides by 0 where no token reads a patch
    shares = counts / counts.sum(0).clamp(min=1e-12)
    mixed = torch.einsum("nhw,nc->hwc", shares, palette)
    opacity = MAX_OPACITY * counts.amax(0).unsqueeze(-1)
    return torch.cat([mixed, opacity], -1).clamp(0, 1).numpy()


def paint_token(origins: Tensor, colour: Tensor) -> np.ndarray:
    """(H, W) -> (H, W, 4): one token's patches in its colour, the one that counts most the most opaque."""
    opacity = MAX_OPACITY * origins / origins.max()
    return torch.cat([colour.expand(*origins.shape, 3), opacity.unsqueeze(-1)], -1).numpy()


def draw_patch_grid(axes: Axes, picture: Image.Image, rows: int, columns: int) -> None:
    """Lines between the patches."""
    for row in range(1, rows):
        axes.axhline(row * picture.height / rows, color="white", linewidth=0.4, alpha=0.7)
    for column in range(1, columns):
        axes.axvline(column * picture.width / columns, color="white", linewidth=0.4, alpha=0.7)
