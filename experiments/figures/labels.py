"""Names beside the points of a plot, placed so that none covers another, a point or its interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.patheffects import withStroke

from experiments.figures.style import escape_dollars

LABEL_SIZE = 7.5  # points
LABEL_GAP = 8.0  # pixels between a point and its name
LABEL_HALO = [withStroke(linewidth=2, foreground="white")]  # lines pass behind the letters
LEADER_STYLE = {"arrowstyle": "-", "color": "#9aa0aa", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}


class LabelBox(NamedTuple):
    """In pixels."""

    left: float
    low: float
    right: float
    high: float

    def overlaps_box(self, other: "LabelBox") -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.low < other.high
            and other.low < self.high
        )

    def lies_inside(self, other: "LabelBox") -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.low >= other.low
            and self.high <= other.high
        )


def annotate_points(
    axes,
    names: Sequence[str],
    x: np.ndarray,
    y: np.ndarray,
    half: np.ndarray,
    only: Sequence[int] | None = None,
) -> None:
    """Annotate points with intervals y +- half, `only` some if given; names of the others would cover each
    other. The limits and the place of the axes must be final."""
    pixel = axes.figure.dpi / 72
    place = axes.transData.transform
    points = place(np.stack([x, y], 1))
    lows, highs = place(np.stack([x, y - half], 1))[:, 1], place(np.stack([x, y + half], 1))[:, 1]
    taken = [
        LabelBox(px - 4, min(low, py - 4), px + 4, max(high, py + 4))
        for (px, py), low, high in zip(points, lows, highs)
    ]
    sizes = [(0.62 * LABEL_SIZE * pixel * len(name), 1.2 * LABEL_SIZE * pixel) for name in names]
    frame = LabelBox(*axes.bbox.extents)
    back = axes.transData.inverted().transform
    shown = list(range(len(names)) if only is None else only)
    boxes = arrange_labels(points[shown], [sizes[i] for i in shown], taken, frame)
    for name, box, point in zip([names[i] for i in shown], boxes, points[shown]):
        right = box.left > point[0]
        near = box.left if right else box.right
        axes.annotate(
            escape_dollars(name),
            back(point),
            back((near, (box.low + box.high) / 2)),
            fontsize=LABEL_SIZE,
            va="center",
            ha="left" if right else "right",
            arrowprops=LEADER_STYLE,
            path_effects=LABEL_HALO,
        )


def arrange_labels(
    points: np.ndarray, sizes: Sequence[tuple[float, float]], taken: Sequence[LabelBox], frame: LabelBox
) -> list[LabelBox]:
    """A box for each point, the nearest place to its right or left that is free and inside the frame; right
    beside the point if there is none."""
    found: dict[int, LabelBox] = {}
    for i in np.lexsort((-points[:, 1], points[:, 0])):
        (x, y), (width, height) = points[i], sizes[i]
        choices = []
        for step in np.arange(0, 14, 0.5):
            for up in (step, -step):
                for reach in (LABEL_GAP, 3 * LABEL_GAP, 6 * LABEL_GAP):
                    for left in (x + reach, x - reach - width):
                        low = y - height / 2 + up * height
                        box = LabelBox(left, low, left + width, low + height)
                        choices.append((abs(up) * height + reach + (left < x), box))
        choices = [box for _, box in sorted(choices, key=lambda choice: choice[0])]
        busy = [*taken, *found.values()]
        free = (box for box in choices if box.lies_inside(frame) and not any(map(box.overlaps_box, busy)))
        found[i] = next(free, choices[0])
    return [found[i] for i in range(len(points))]
