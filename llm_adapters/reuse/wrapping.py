"""Methods of a model wrapped in place: no key of its state dict changes, and all of it can be undone."""
import inspect
from collections.abc import Callable

from torch import nn


class Around:
    """`around(original, *args)` in the place of `original`, with the original's signature, which `generate`
    reads. An object, not a closure: copies of a model get their own."""

    def __init__(self, around: Callable, original: Callable):
        self.around, self.original = around, original

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args, **kwargs):
        return self.around(self.original, *args, **kwargs)


class Wrapping:
    """What was wrapped, and the handles of hooks."""

    def __init__(self):
        self.before: list[tuple[object, str, object]] = []
        self.handles: list = []

    def wrap(self, owner: object, name: str, around: Callable) -> None:
        """`owner.name` becomes `around(original, ...)`."""
        self.before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, Around(around, getattr(owner, name)))

    def undo(self) -> None:
        """As it was."""
        for handle in self.handles:
            handle.remove()
        for owner, name, before in reversed(self.before):
            delattr(owner, name)
            if before is not None:
                setattr(owner, name, before)
        self.before, self.handles = [], []


def encoded(base: nn.Module, kwargs: dict) -> dict:
    """Arguments of a model's forward, with its images gone through the tower as `generate` does it on its
    own: `mm_encoder_outputs` in the place of `pixel_values`."""
    if kwargs.get("pixel_values") is None:
        return kwargs
    names = inspect.signature(base.get_image_features).parameters
    image = base.get_image_features(**{k: v for k, v in kwargs.items() if k in names})
    outputs = {**(kwargs.get("mm_encoder_outputs") or {}), "image": image}
    return {**kwargs, "pixel_values": None, "mm_encoder_outputs": outputs}


def named_arguments(function: Callable, args: tuple, kwargs: dict) -> dict:
    """All arguments of a call by their names."""
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    return {**bound, **bound.pop("kwargs", {})}
