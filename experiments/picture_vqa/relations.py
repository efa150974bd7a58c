"""Where things stand: places and directions between objects, asked only where there is no doubt."""

from collections.abc import Sequence

from experiments.picture_vqa.scenes import SCENE_SIZE, Scene, SceneObject, Sign

ROW_NAMES = ("top", "middle", "bottom")
COLUMN_NAMES = ("left", "center", "right")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
PLACE_MARGIN = 6  # pixels from a border between thirds
SIDE_MARGIN = 16  # pixels between centres for "left or right"
# The tangents of 35 and 55 degrees, either side of the diagonal: surely inside a direction, surely outside.
INNER_SLOPE = 0.7
OUTER_SLOPE = 1.43


def find_clear_places(scene: Scene) -> list[tuple[str, SceneObject]]:
    """(place, object) wherever one object is clearly in the place and no other is anywhere near it.

    Places are the nine thirds, row by row: "top left", ..., "center", ..., "bottom right".
    """
    third = SCENE_SIZE / 3
    clear_places = []
    for row, row_name in enumerate(ROW_NAMES):
        for column, column_name in enumerate(COLUMN_NAMES):
            left = column * third
            top = row * third
            nearby = [item for item in scene.objects if _is_inside(item, left, top, third, -PLACE_MARGIN)]
            if len(nearby) != 1 or not _is_inside(nearby[0], left, top, third, PLACE_MARGIN):
                continue
            in_the_middle = row == 1 and column == 1
            place = "center" if in_the_middle else f"{row_name} {column_name}"
            clear_places.append((place, nearby[0]))
    return clear_places


def _is_inside(item: SceneObject, left: float, top: float, side: float, margin: float) -> bool:
    """Whether the centre is in the square, `margin` from its borders; the picture's edge is no border."""
    x_low = left + margin * (left > 0)
    x_high = left + side - margin * (left + side < SCENE_SIZE)
    y_low = top + margin * (top > 0)
    y_high = top + side - margin * (top + side < SCENE_SIZE)
    return x_low <= item.x <= x_high and y_low <= item.y <= y_high


def measure_slope(anchor: SceneObject | Sign, target: SceneObject, direction: str) -> float | None:
    """|across| / along, seen from the anchor in the direction; None when the target is not on that side."""
    dx, dy = DIRECTIONS[direction]
    along = (target.x - anchor.x) * dx + (target.y - anchor.y) * dy
    across = (target.x - anchor.x) * dy + (target.y - anchor.y) * dx
    if along <= 0:
        return None
    return abs(across) / along


def find_neighbour(
    anchor: SceneObject | Sign, objects: Sequence[SceneObject], direction: str
) -> SceneObject | None:
    """The only object in that direction: within 35 degrees of it, every other one at least 55 degrees off."""
    nearby = []
    for item in objects:
        if item is anchor:
            continue
        slope = measure_slope(anchor, item, direction)
        if slope is not None and slope < OUTER_SLOPE:
            nearby.append((slope, item))
    if len(nearby) != 1:
        return None
    slope, neighbour = nearby[0]
    if slope >= INNER_SLOPE:
        return None
    return neighbour


def find_side(anchor: SceneObject, reference: SceneObject, first: str, second: str) -> str | None:
    """`first` ("left of", "above") or `second`, whichever side of the reference the anchor is clearly on."""
    dx, dy = DIRECTIONS[first]
    offset = (anchor.x - reference.x) * dx + (anchor.y - reference.y) * dy
    if abs(offset) < SIDE_MARGIN:
        return None
    if offset > 0:
        return first
    return second
