"""What is read of files once for all cells of a request, and again for the next one.

A plan of a thousand cells asks for the same data file a thousand times; a notebook asks for the next sweep
after somebody has edited the file.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, Protocol, TypeVar, cast

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result", covariant=True)


class Remembered(Protocol[Parameters, Result]):
    """A function whose results are remembered."""

    def __call__(self, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        """The result, remembered or not."""

    def cache_clear(self) -> None:
        """Forget all results."""


_forgetters: list[Callable[[], None]] = []


def remember_for_request(
    most: int | None = None,
) -> Callable[[Callable[Parameters, Result]], Remembered[Parameters, Result]]:
    """A decorator: as `functools.lru_cache`, until the next request. `most`: so many results; None: all."""

    def decorate(function: Callable[Parameters, Result]) -> Remembered[Parameters, Result]:
        cached = lru_cache(maxsize=most)(function)
        _forgetters.append(cached.cache_clear)
        return cast(Remembered[Parameters, Result], cached)

    return decorate


def begin_request() -> None:
    """Forget what was read of files: they may have been edited since."""
    for forget in _forgetters:
        forget()
