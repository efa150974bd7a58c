"""Exact-name registries whose knobs are the keyword arguments of what is registered.

A part is registered under one exact name; its knobs, their types and defaults are read from its constructor,
so there is no second list to keep in step. Outside packages register through an entry-point group.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points

from compressors.errors import UsageError


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'? Known: a, b, c" for an unknown name."""
    known = sorted(known)
    shown = known if len(known) <= 40 else get_close_matches(name, known, n=8, cutoff=0.2)
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"; did you mean '{close[0]}'?" if close else ";") + f" Known: {', '.join(shown) or 'none'}"


def conform(value: object, hint: object, where: str) -> object:
    """`value` as the type `hint` (lists become tuples, ints floats), or a UsageError that names `where`."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint in (inspect.Parameter.empty, typing.Any):
        return value
    if origin in (typing.Union, types.UnionType):
        for option in options:
            try:
                return conform(value, option, where)
            except UsageError:
                continue
    elif origin is typing.Literal:
        if value in options:
            return value
        hint = " | ".join(map(str, options))
    elif origin in (list, Sequence):
        if isinstance(value, (list, tuple)):
            return [conform(item, options[0], where) for item in value]
    elif origin in (dict, Mapping):
        if isinstance(value, Mapping):
            return {conform(k, options[0], where): conform(v, options[1], where) for k, v in value.items()}
    elif hint is tuple and isinstance(value, list):  # what a saved configuration has of it
        return tuple(value)
    elif origin is tuple:
        if isinstance(value, (list, tuple)) and (options[-1] is Ellipsis or len(options) == len(value)):
            hints = options[:1] * len(value) if options[-1] is Ellipsis else options
            return tuple(conform(item, h, where) for item, h in zip(value, hints))
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    kind = getattr(hint, "__name__", hint) if origin is None else hint
    raise UsageError(f"{where}={value!r}: expected {kind}, got {type(value).__name__}")


class Registry:
    """Names -> classes. `context` are constructor arguments that the composed model gives, not the user."""

    def __init__(self, kind: str, group: str | None = None, context: tuple[str, ...] = ()):
        self.kind, self.group, self.context = kind, group, frozenset(context)
        self._classes: dict[str, type] = {}
        self._loaded = group is None

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator. Registering a name twice is an error."""

        def decorate(cls: type) -> type:
            known = self._classes.get(name)
            # the same class again is no conflict: a notebook cell or a module that runs twice
            if known and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UsageError(f"{self.kind} '{name}' is already registered by {known.__module__}")
            self._classes[name] = cls
            cls.registered_name = name
            return cls

        return decorate

    def _load_entry_points(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # before loading: a package may ask for the names
        for point in entry_points(group=self.group):
            try:
                self.register(point.name)(point.load())
            except Exception as error:
                self._loaded = False
                raise UsageError(
                    f"{self.kind} '{point.name}' of entry point {point.value} does not load: {error}; "
                    "mend or uninstall that package"
                ) from error

    def names(self) -> list[str]:
        """All registered names, outside packages included, sorted."""
        self._load_entry_points()
        return sorted(self._classes)

    def get(self, name: str) -> type:
        """The class registered as exactly `name`; otherwise a UsageError with the closest match."""
        if name not in self.names():
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, self._classes)}")
        return self._classes[name]

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """All constructor parameters of `name`, context included, with resolved annotations."""
        cls = self.get(name)
        hints = typing.get_type_hints(cls.__init__)
        found = list(inspect.signature(cls.__init__).parameters.values())[1:]
        return {p.name: p.replace(annotation=hints.get(p.name, inspect.Parameter.empty)) for p in found}

    def knobs(self, name: str) -> dict[str, inspect.Parameter]:
        """What a user may set for `name`."""
        return {k: p for k, p in self.parameters(name).items() if k not in self.context}

    def check(self, name: str, **knobs: object) -> dict[str, object]:
        """The knobs, conformed to their types; an unknown or ill-typed one is a UsageError."""
        known = self.knobs(name)
        for knob in knobs:
            if knob not in known:
                raise UsageError(f"{self.kind} '{name}' has no knob '{knob}'{suggest(knob, known)}")
        return {k: conform(v, known[k].annotation, f"{name}.{k}") for k, v in knobs.items()}

    def create(self, name: str, **arguments: object):
        """Build `name`. Context arguments that its constructor does not take are dropped."""
        parameters = self.parameters(name)
        missing = [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]
        if missing:
            raise UsageError(f"{self.kind} '{name}' needs {', '.join(missing)}")
        context = {k: v for k, v in arguments.items() if k in self.context and k in parameters}
        knobs = {k: v for k, v in arguments.items() if k not in self.context}
        return self.get(name)(**context, **self.check(name, **knobs))
