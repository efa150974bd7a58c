"""Where things stand: places and directions between objects, asked only where there is no doubt."""

from collections.abc import Sequence

from experiments.picture_vqa.scenes import SCENE_SIZE, Scene, SceneObject, Sign

ROW_NAMES, COLUMN_NAMES = ("top", "middle", "bottom"), ("left", "center", "right")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
PLACE_MARGIN = 6  # pixels from a border between thirds
SIDE_MARGIN = 16  # pixels between centres for "left or right"
INNER_SLOPE, OUTER_SLOPE = (
    0.7,
    1.43,
)  # tangents of 35 and 55 degrees: surely inside, surely outside a direction


def list_places() -> list[str]:
    """The nine thirds: "top left", ..., "center", ..., "bottom right"."""
    return [_name_place(row, column) for row in range(3) for column in range(3)]


def _name_place(row: int, column: int) -> str:
    return "center" if (row, column) == (1, 1) else f"{ROW_NAMES[row]} {COLUMN_NAMES[column]}"


def find_place(item: SceneObject | Sign) -> str:
    """The third its centre is in."""
    return _name_place(int(item.y * 3 // SCENE_SIZE), int(item.x * 3 // SCENE_SIZE))


def find_clear_places(scene: Scene) -> list[tuple[str, SceneObject]]:
    """(place, object) wherever one object is clearly in the place and no other is anywhere near it."""
    third = SCENE_SIZE / 3
    found = []
    for index, name in enumerate(list_places()):
        left, top = index % 3 * third, index // 3 * third
        near = [o for o in scene.objects if _is_inside(o, left, top, third, -PLACE_MARGIN)]
        if len(near) == 1 and _is_inside(near[0], left, top, third, PLACE_MARGIN):
            found.append((name, near[0]))
    return found


def _is_inside(item: SceneObject, left: float, top: float, side: float, margin: float) -> bool:
    """Whether the centre is in the square, `margin` from its borders; the picture's edge is no border."""
    x_low, x_high = left + margin * (left > 0), left + side - margin * (left + side < SCENE_SIZE)
    y_low, y_high = top + margin * (top > 0), top + side - margin * (top + side < SCENE_SIZE)
    return x_low <= item.x <= x_high and y_low <= item.y <= y_high


def measure_slope(anchor: SceneObject | Sign, other: SceneObject, direction: str) -> float | None:
    """|across| / along, seen from the anchor in the direction; None when the other is not on that side."""
    dx, dy = DIRECTIONS[direction]
    along = (other.x - anchor.x) * dx + (other.y - anchor.y) * dy
    across = (other.x - anchor.x) * dy + (other.y - anchor.y) * dx
    return abs(across) / along if along > 0 else None


def find_neighbour(
    anchor: SceneObject | Sign, others: Sequence[SceneObject], direction: str
) -> SceneObject | None:
    """The only object in that direction: within 35 degrees of it, every other one at least 55 degrees off."""
    slopes = [
        (s, o) for o in others if o is not anchor and (s := measure_slope(anchor, o, direction)) is not None
    ]
    near = [(s, o) for s, o in slopes if s < OUTER_SLOPE]
    return near[0][1] if len(near) == 1 and near[0][0] < INNER_SLOPE else None


def find_side(anchor: SceneObject, other: SceneObject, first: str, second: str) -> str | None:
    """`first` ("left of", "above") or `second`, whichever side of the other the anchor is clearly on."""
    dx, dy = DIRECTIONS[first]
    offset = (anchor.x - other.x) * dx + (anchor.y - other.y) * dy
    if abs(offset) < SIDE_MARGIN:
        return None
    return first if offset > 0 else second
