"""Draws where a compressor's tokens come from: all of them in one panel, then some one by one."""

import colorsys
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from experiments.inspection.attention_figure import FADED_SHARE, overlay_weights, show_picture

TOKEN_PANEL_INCHES, TOKEN_GAP_INCHES, TOKEN_TITLE_INCHES = 1.75, 0.06, 0.2  # inches
SHOWN_TOKENS = 3  # tokens that have a panel of their own
MAX_OPACITY = 0.85
ALIKE_TOLERANCE = 1e-5  # of the largest weight: float32's noise
GOLDEN_HUE_STEP = 0.618034  # of the colour circle: tokens that follow one another look unlike


def draw_origins(picture: Image.Image, found: Tensor, weights: Tensor | None) -> Figure:
    """`found` (N, H, W): each token's share of the patches; `weights` (H, W): what the compressor itself says
    of all its tokens together, None: nothing."""
    colours = make_palette(len(found))
    panels: list[tuple[str, Any]] = [(f"all {len(found)} tokens", paint_all_tokens(found, colours))]
    panels += [(f"token {i + 1}", paint_token(found[i], colours[i])) for i in pick_example_tokens(len(found))]
    panels.append(title_own_weights(weights))
    across, down = (
        TOKEN_GAP_INCHES + len(panels) * (TOKEN_PANEL_INCHES + TOKEN_GAP_INCHES),
        TOKEN_PANEL_INCHES + TOKEN_TITLE_INCHES + TOKEN_GAP_INCHES,
    )
    figure = Figure((across, down), dpi=100)
    for x, (title, layer) in enumerate(panels):
        left = TOKEN_GAP_INCHES + x * (TOKEN_PANEL_INCHES + TOKEN_GAP_INCHES)
        axes = figure.add_axes(
            (left / across, TOKEN_GAP_INCHES / down, TOKEN_PANEL_INCHES / across, TOKEN_PANEL_INCHES / down)
        )
        show_picture(axes, picture, FADED_SHARE)
        axes.set_title(title, fontsize=8, pad=3)
        if isinstance(layer, np.ndarray):
            axes.imshow(layer, interpolation="nearest", extent=(0, picture.width, picture.height, 0))
        elif layer is not None:
            overlay_weights(axes, layer.numpy(), picture)
        rows, columns = found.shape[1:]
        draw_patch_grid(axes, picture, (rows, columns))
    return figure


def title_own_weights(weights: Tensor | None) -> tuple[str, Tensor | None]:
    """The compressor's own weights with their title."""
    if weights is None:
        return "tells no weights of its own", None
    alike = weights.max() - weights.min() < ALIKE_TOLERANCE * weights.max()
    return f"its own weights{', all alike' if alike else ''}", weights


def make_palette(count: int) -> Tensor:
    """(N, 3): a colour for each token, hues around the circle, light and dark in turn."""
    values = [(i * GOLDEN_HUE_STEP % 1, 0.9, 0.95 if i % 2 else 0.7) for i in range(count)]
    return torch.tensor([colorsys.hsv_to_rgb(*value) for value in values])


def pick_example_tokens(count: int) -> list[int]:
    """Tokens spread over the sequence."""
    return list(dict.fromkeys(int(count * (i + 0.5) / SHOWN_TOKENS) for i in range(SHOWN_TOKENS)))


def paint_all_tokens(found: Tensor, colours: Tensor) -> np.ndarray:
    """(H, W, 4): a patch has its tokens' colours, mixed by how much it counts for each, as a share of what
    that token's first patch does; its opacity is the largest of these."""
    counts = found / found.amax((1, 2), keepdim=True)
    mixed = torch.einsum("nhw,nc->hwc", counts / counts.sum(0).clamp(min=1e-12), colours)
    return torch.cat([mixed, MAX_OPACITY * counts.amax(0).unsqueeze(-1)], -1).clamp(0, 1).numpy()


def paint_token(found: Tensor, colour: Tensor) -> np.ndarray:
    """(H, W, 4): one token's patches in its colour, the one that counts most the most opaque."""
    opacity = MAX_OPACITY * found / found.max()
    return torch.cat([colour.expand(*found.shape, 3), opacity.unsqueeze(-1)], -1).numpy()


def draw_patch_grid(axes: Axes, picture: Image.Image, shape: tuple[int, int]) -> None:
    """Lines between the patches."""
    rows, columns = shape
    for count, side, line in ((rows, picture.height, axes.axhline), (columns, picture.width, axes.axvline)):
        for i in range(1, count):
            line(i * side / count, color="white", linewidth=0.4, alpha=0.7)
