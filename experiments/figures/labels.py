"""Names beside the points of a plot, placed so that none covers another or a point, nor, where there is room,
an interval."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from experiments.figures.style import escape_dollars

LABEL_SIZE = 7.5  # points
LABEL_GAP = 8.0  # pixels between a point and its name
MARKER_RADIUS = 4  # pixels around a point that belong to it
# of a letter, in units of the font size: names are not drawn to be measured
LETTER_WIDTH = 0.62
LINE_HEIGHT = 1.2
LINE_RADIUS = 1  # pixels above and below a line that belong to it
LINE_STEPS = 20  # boxes that a straight piece of a line is covered with
LABEL_HALO = [withStroke(linewidth=2, foreground="white")]  # lines pass behind the letters
LEADER_STYLE = {"arrowstyle": "-", "color": "#9aa0aa", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}


class LabelBox(NamedTuple):
    """In pixels."""

    left: float
    low: float
    right: float
    high: float

    def overlaps_box(self, other: "LabelBox") -> bool:
        """Whether the two have an area in common."""
        if self.left >= other.right or other.left >= self.right:
            return False
        return self.low < other.high and other.low < self.high

    def lies_inside(self, other: "LabelBox") -> bool:
        """Whether no part of it is outside the other one."""
        if self.left < other.left or self.right > other.right:
            return False
        return self.low >= other.low and self.high <= other.high


def annotate_points(
    axes: Axes,
    names: Sequence[str],
    x: np.ndarray,
    y: np.ndarray,
    half: np.ndarray,
    only: Sequence[int] | None = None,
    busy: Sequence[LabelBox] = (),
) -> None:
    """Annotate points with intervals y +- half, `only` some if given; names of the others would cover each
    other. `busy`: what else names should leave free. The limits and the place of the axes must be final."""
    to_pixels = axes.transData.transform
    points = to_pixels(np.stack([x, y], 1))  # (N, 2)
    lows = to_pixels(np.stack([x, y - half], 1))[:, 1]
    highs = to_pixels(np.stack([x, y + half], 1))[:, 1]
    busy_boxes = list(busy)
    for (point_x, point_y), low, high in zip(points, lows, highs):
        bottom = min(low, point_y - MARKER_RADIUS)
        top = max(high, point_y + MARKER_RADIUS)
        busy_boxes.append(LabelBox(point_x - MARKER_RADIUS, bottom, point_x + MARKER_RADIUS, top))

    if only is None:
        only = range(len(names))
    indices = list(only)  # numpy takes a list for rows, a tuple for a place
    pixels_per_point = axes.figure.dpi / 72
    height = LINE_HEIGHT * LABEL_SIZE * pixels_per_point
    sizes: list[tuple[float, float]] = []
    for i in indices:
        width = LETTER_WIDTH * LABEL_SIZE * pixels_per_point * len(names[i])
        sizes.append((width, height))
    frame = LabelBox(*axes.bbox.extents)
    boxes = arrange_labels(points[indices], sizes, busy_boxes, frame)
    for i, box in zip(indices, boxes):
        annotate_point(axes, names[i], points[i], box)


def cover_lines(axes: Axes, lines: Sequence[Line2D]) -> list[LabelBox]:
    """Small boxes along lines and over their points. The limits and the place of the axes must be final."""
    boxes = []
    for line in lines:
        points = axes.transData.transform(line.get_xydata())  # (N, 2)
        boxes += [make_marker_box(x, y) for x, y in points]
        for start, end in pairwise(points):
            for piece in pairwise(np.linspace(start, end, LINE_STEPS + 1)):
                left, low = np.min(piece, axis=0)
                right, high = np.max(piece, axis=0)
                boxes.append(LabelBox(left, low - LINE_RADIUS, right, high + LINE_RADIUS))
    return boxes


def annotate_point(axes: Axes, name: str, point: np.ndarray, box: LabelBox) -> None:
    """Write a name into its box, with a line from its point (x, y), all in pixels."""
    near_edge = box.right
    alignment = "right"
    if box.left > point[0]:  # right of its point
        near_edge = box.left
        alignment = "left"
    to_data = axes.transData.inverted().transform
    label_x, label_y = to_data((near_edge, (box.low + box.high) / 2))
    point_x, point_y = to_data(point)
    axes.annotate(
        escape_dollars(name),
        (point_x, point_y),
        (label_x, label_y),
        fontsize=LABEL_SIZE,
        va="center",
        ha=alignment,
        arrowprops=LEADER_STYLE,
        path_effects=LABEL_HALO,
    )


def arrange_labels(
    points: np.ndarray,
    sizes: Sequence[tuple[float, float]],
    busy_boxes: Sequence[LabelBox],
    frame: LabelBox,
) -> list[LabelBox]:
    """A box for each point, the nearest place to its right or left that is free and inside the frame. If
    there is none, one over an interval, but over no point and no other name; else right beside the point."""
    boxes: dict[int, LabelBox] = {}
    markers = [make_marker_box(x, y) for x, y in points]
    # from the left, of equals the upper one first: the same labels each time
    for i in np.lexsort((-points[:, 1], points[:, 0])):
        places = [place for place in list_label_places(points[i], sizes[i]) if place.lies_inside(frame)]
        names = list(boxes.values())
        place = find_free_place(places, [*busy_boxes, *names]) or find_free_place(places, [*markers, *names])
        boxes[i] = place or list_label_places(points[i], sizes[i])[0]
    return [boxes[i] for i in range(len(points))]


def make_marker_box(x: float, y: float) -> LabelBox:
    """What a point covers without its interval."""
    return LabelBox(x - MARKER_RADIUS, y - MARKER_RADIUS, x + MARKER_RADIUS, y + MARKER_RADIUS)


def find_free_place(places: Sequence[LabelBox], covered: Sequence[LabelBox]) -> LabelBox | None:
    """The first place that covers none of these; None if there is no such."""
    for place in places:
        if not any(map(place.overlaps_box, covered)):
            return place
    return None


def list_label_places(point: np.ndarray, size: tuple[float, float]) -> list[LabelBox]:
    """Where a label of `size` may stand beside a point, the nearest first; of equals the one to the right."""
    x, y = point
    width, height = size
    places: list[tuple[float, LabelBox]] = []
    for step in np.arange(0, 14, 0.5):
        for lines_up in (step, -step):
            low = y - height / 2 + lines_up * height
            for reach in (LABEL_GAP, 3 * LABEL_GAP, 6 * LABEL_GAP):
                for start in (x + reach, x - reach - width):
                    # the right side is nearer by a pixel: names read on from their points
                    distance = abs(lines_up) * height + reach + (start < x)
                    places.append((distance, LabelBox(start, low, start + width, low + height)))
    return [box for _, box in sorted(places, key=lambda place: place[0])]
