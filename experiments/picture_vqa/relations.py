"""Where things stand: places and directions between objects, asked only where there is no doubt."""

from collections.abc import Sequence

from experiments.picture_vqa.scenes import SIZE, Object, Scene, Sign

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
PLACE_MARGIN = 6  # pixels from a border between thirds
SIDE_MARGIN = 16  # pixels between centres for "left or right"
INNER, OUTER = 0.7, 1.43  # tangents of 35 and 55 degrees: surely inside, surely outside a direction


def place_names() -> list[str]:
    """The nine thirds: "top left", ..., "center", ..., "bottom right"."""
    return [_place_name(row, column) for row in range(3) for column in range(3)]


def _place_name(row: int, column: int) -> str:
    return "center" if (row, column) == (1, 1) else f"{ROWS[row]} {COLUMNS[column]}"


def place_of(item: Object | Sign) -> str:
    """The third its centre is in."""
    return _place_name(int(item.y * 3 // SIZE), int(item.x * 3 // SIZE))


def clear_places(scene: Scene) -> list[tuple[str, Object]]:
    """(place, object) wherever one object is clearly in the place and no other is anywhere near it."""
    third = SIZE / 3
    found = []
    for index, name in enumerate(place_names()):
        left, top = index % 3 * third, index // 3 * third
        near = [o for o in scene.objects if _inside(o, left, top, third, -PLACE_MARGIN)]
        if len(near) == 1 and _inside(near[0], left, top, third, PLACE_MARGIN):
            found.append((name, near[0]))
    return found


def _inside(item: Object, left: float, top: float, side: float, margin: float) -> bool:
    """Whether the centre is in the square, `margin` from its borders; the picture's edge is no border."""
    x_low, x_high = left + margin * (left > 0), left + side - margin * (left + side < SIZE)
    y_low, y_high = top + margin * (top > 0), top + side - margin * (top + side < SIZE)
    return x_low <= item.x <= x_high and y_low <= item.y <= y_high


def slope(anchor: Object | Sign, other: Object, direction: str) -> float | None:
    """|across| / along, seen from the anchor in the direction; None when the other is not on that side."""
    dx, dy = DIRECTIONS[direction]
    along = (other.x - anchor.x) * dx + (other.y - anchor.y) * dy
    across = (other.x - anchor.x) * dy + (other.y - anchor.y) * dx
    return abs(across) / along if along > 0 else None


def neighbour(anchor: Object | Sign, others: Sequence[Object], direction: str) -> Object | None:
    """The only object in that direction: within 35 degrees of it, every other one at least 55 degrees off."""
    slopes = [(s, o) for o in others if o is not anchor and (s := slope(anchor, o, direction)) is not None]
    near = [(s, o) for s, o in slopes if s < OUTER]
    return near[0][1] if len(near) == 1 and near[0][0] < INNER else None


def side(anchor: Object, other: Object, first: str, second: str) -> str | None:
    """`first` ("left of", "above") or `second`, whichever side of the other the anchor is clearly on."""
    dx, dy = DIRECTIONS[first]
    offset = (anchor.x - other.x) * dx + (anchor.y - other.y) * dy
    if abs(offset) < SIDE_MARGIN:
        return None
    return first if offset > 0 else second
