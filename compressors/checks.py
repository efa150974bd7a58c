"""Checks of knobs, made at construction: what cannot work is a UsageError before anything is computed."""

import math
import typing

from torch import Tensor

from compressors.errors import UsageError


def check_finite(**knobs: float) -> None:
    """Each knob must be a number, and not infinite."""
    for name, value in knobs.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name}={value}: must be a finite number")


def check_at_least(minimum: int, **knobs: float) -> None:
    """Each knob must be `minimum` or more."""
    check_finite(**knobs)
    for name, value in knobs.items():
        if value < minimum:
            raise UsageError(f"{name}={value}: must be at least {minimum}")


def check_positive(**knobs: float) -> None:
    """Each knob must be more than 0."""
    check_finite(**knobs)
    for name, value in knobs.items():
        if not value > 0:
            raise UsageError(f"{name}={value}: must be more than 0")


def check_probability(**knobs: float) -> None:
    """Each knob must be in [0, 1)."""
    check_finite(**knobs)
    for name, value in knobs.items():
        if not 0 <= value < 1:
            raise UsageError(f"{name}={value}: must be at least 0 and below 1")


def check_share(**knobs: float) -> None:
    """Each knob must be in [0, 1]."""
    check_finite(**knobs)
    for name, value in knobs.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{name}={value}: must be at least 0 and at most 1")


def check_block(block: int) -> None:
    """A block of the tower, as cues count them."""
    if block == 0:
        raise UsageError("block=0: blocks count from 1, or from the end with -1")


def check_choice(hint: object, **knobs: object) -> None:
    """Each knob must be one of the values of the Literal `hint`."""
    options = typing.get_args(hint)
    for name, value in knobs.items():
        if value not in options:
            raise UsageError(f"{name}={value!r}: choose one of {', '.join(map(str, options))}")


def check_heads_divide(heads: int, width: int, names: tuple[str, str] = ("heads", "width")) -> None:
    """Attention heads must divide the width they share."""
    heads_name, width_name = names
    check_at_least(1, **{heads_name: heads, width_name: width})
    if width % heads:
        divisors = [str(count) for count in range(1, width + 1) if width % count == 0]
        raise UsageError(
            f"{heads_name}={heads} does not divide {width_name}={width}; choose one of {', '.join(divisors)}"
        )


def check_grid(grid: tuple[int, int], name: str = "grid") -> tuple[int, int]:
    """A grid, (height, width)."""
    if len(grid) != 2 or min(grid) < 1:
        raise UsageError(f"{name}={tuple(grid)}: must be (height, width), both at least 1")
    height, width = grid  # a list, where a configuration was read from JSON
    return height, width


def check_channels(features: Tensor, dim: int, levels: tuple[int, ...]) -> None:
    """Features must have `dim` channels, and as many again for each of the tower's `levels`."""
    expected = (1 + len(levels)) * dim
    if features.shape[-1] != expected:
        raise UsageError(
            f"levels={tuple(levels)}: features have {features.shape[-1]} channels, expected {expected}, the "
            f"tower's output and {len(levels)} of its hidden states"
        )


def require_llm_dim(llm_dim: int | None, wanted_by: str) -> int:
    """The LLM's width, which is optional until some knob wants it."""
    if llm_dim is None:
        raise UsageError(f"{wanted_by} needs llm_dim")
    return llm_dim
