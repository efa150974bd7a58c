"""Which layers, and how many visual tokens are left behind each of them. Plain numbers, no tensors."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from compressors.errors import UsageError

Number = TypeVar("Number", int, float)

PUBLISHED_DEPTH = 32  # decoder layers of the models that the papers prune


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
    if not layers or list(layers) != sorted(set(layers)) or layers[0] < 1 or layers[-1] >= depth:
        raise UsageError(
            f"layers={list(layers)}: behind which decoder layers tokens go: ascending numbers "
            f"from 1 to {depth - 1}, the last that has one behind it"
        )
    if shares is None:
        return
    if len(shares) != len(layers):
        raise UsageError(f"{len(shares)} shares for {len(layers)} layers; give one for each")
    if not all(0 <= b <= a <= 1 for a, b in zip((1, *shares), shares)):
        raise UsageError(f"shares {list(shares)}: each must be in [0, 1] and none above the one before it")


def expand_to_layers(
    depth: int, layers: Sequence[int], left: Sequence[Number], start: Number
) -> list[Number]:
    """What is in each of `depth` layers, of `start` in the first and `left[i]` behind layer `layers[i]`."""
    in_layers = [start] * depth
    for layer, value in zip(layers, left):
        in_layers[layer:] = [value] * (depth - layer)
    return in_layers


def average_share(depth: int, layers: Sequence[int], shares: Sequence[float]) -> float:
    """Mean share over the layers."""
    return sum(expand_to_layers(depth, layers, shares, 1.0)) / depth


def solve_shares(
    depth: int, layers: Sequence[int], wanted: float, shares: Callable[[float], tuple[float, ...]]
) -> tuple[float, ...]:
    """The shares, of a family `shares(r)` that grows with r in [0, 1], whose average over layers is `wanted`.
    UsageError if none has it."""
    least = average_share(depth, layers, shares(0.0))
    if not least <= wanted <= 1:
        raise UsageError(
            f"average={wanted}: the layers before the first drop see all visual tokens, so the "
            f"average share is between {least:.3g} and 1"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if average_share(depth, layers, shares(middle)) < wanted:
            low = middle
        else:
            high = middle
    return shares(high)


def geometric_shares(ratio: float, stages: int) -> tuple[float, ...]:
    """A share `ratio` of what is left goes on at each stage."""
    return tuple(ratio ** (i + 1) for i in range(stages))


def check_shares(**knobs: float | None) -> None:
    """Each knob is a share, in [0, 1], or None."""
    for name, value in knobs.items():
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"{name}={value}: a share of the visual tokens, from 0 to 1")
