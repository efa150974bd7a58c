"""Which layers, and how many visual tokens are left behind each of them. Plain numbers, no tensors.

A share is of the visual tokens that a row has at the start, also behind later layers.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

from compressors.errors import UsageError

Number = TypeVar("Number", int, float)

PUBLISHED_DEPTH = 32  # decoder layers of the models that the papers prune
BISECTION_STEPS = 60  # more than a float has digits


def round_share(n: int, share: float) -> int:
    """A share of `n` tokens, to the nearest; halves up."""
    return int(n * share + 0.5)


def scale_layers(depth: int, layers: Sequence[int]) -> tuple[int, ...]:
    """Layers of a model with `PUBLISHED_DEPTH` of them, at the same place in one of `depth`, all different;
    in a very shallow one fewer."""
    scaled: list[int] = []
    for layer in layers:
        lowest = scaled[-1] + 1 if scaled else 1
        place = max(round_share(layer, depth / PUBLISHED_DEPTH), lowest)
        if place < depth:
            scaled.append(place)
    return tuple(scaled)


def check_schedule(depth: int, layers: Sequence[int], shares: Sequence[float] | None) -> None:
    """UsageError for layers that a model of `depth` does not have, or shares that grow."""
    if depth < 2:
        raise UsageError("pruning: the language model has one decoder layer; there is none behind it to save")
    is_ascending = bool(layers) and list(layers) == sorted(set(layers))
    if not is_ascending or layers[0] < 1 or layers[-1] >= depth:
        raise UsageError(
            f"layers={list(layers)}: behind which decoder layers tokens go: ascending numbers "
            f"from 1 to {depth - 1}, the last that has one behind it"
        )
    if shares is None:
        return
    if len(shares) != len(layers):
        raise UsageError(f"{len(shares)} shares for {len(layers)} layers; give one for each")
    earlier_share = 1.0
    for share in shares:
        if not 0 <= share <= earlier_share:
            raise UsageError(
                f"shares {list(shares)}: each must be in [0, 1] and none above the one before it"
            )
        earlier_share = share


def check_shares(**knobs: float | None) -> None:
    """Each knob is a share, in [0, 1], or None; otherwise a UsageError."""
    for name, value in knobs.items():
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{name}={value}: a share of the visual tokens, from 0 to 1")


def expand_to_layers(
    depth: int,
    layers: Sequence[int],
    left: Sequence[Number],
    start: Number,
) -> list[Number]:
    """What is in each of `depth` layers, of `start` in the first and `left[i]` behind layer `layers[i]`."""
    in_layers = [start] * depth
    for layer, value in zip(layers, left):
        in_layers[layer:] = [value] * (depth - layer)
    return in_layers


def average_share(depth: int, layers: Sequence[int], shares: Sequence[float]) -> float:
    """Mean share over the layers."""
    return sum(expand_to_layers(depth, layers, shares, 1.0)) / depth


def geometric_shares(ratio: float, stages: int) -> tuple[float, ...]:
    """A share `ratio` of what is left goes on at each stage."""
    return tuple(ratio ** (stage + 1) for stage in range(stages))


def find_shares(
    depth: int,
    layers: Sequence[int],
    ratio: float,
    average: float | None,
) -> tuple[float, ...]:
    """The shares behind `layers` where each leaves `ratio` of what is there, or, with an `average`, the ratio
    at which that is the mean over all layers. UsageError for layers or an average that cannot be."""
    check_schedule(depth, layers, None)
    if average is None:
        return geometric_shares(ratio, len(layers))
    return solve_shares(depth, layers, average, lambda r: geometric_shares(r, len(layers)))


def plan_one_drop(
    depth: int, layer: int | None, published_layer: int, ratio: float, average: float | None
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The layer and the share of a method that drops once: behind `layer`, or as deep a share of the model as
    `published_layer`, down to `ratio`, or to an `average` over all layers. UsageError as `find_shares`."""
    check_shares(ratio=ratio, average=average)
    layers = scale_layers(depth, (published_layer,))
    if layer is not None:
        layers = (layer,)
    return layers, find_shares(depth, layers, ratio, average)


def solve_shares(
    depth: int,
    layers: Sequence[int],
    average: float,
    shares: Callable[[float], tuple[float, ...]],
) -> tuple[float, ...]:
    """The shares, of a family `shares(r)` that grows with r in [0, 1], whose mean over layers is `average`.
    UsageError if none has it."""
    least = average_share(depth, layers, shares(0.0))
    if not least <= average <= 1:
        raise UsageError(
            f"average={average}: the layers before the first drop see all visual tokens, so the "
            f"average share is between {least:.3g} and 1"
        )
    low = 0.0
    high = 1.0
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        if average_share(depth, layers, shares(middle)) < average:
            low = middle
        else:
            high = middle
    return shares(high)
