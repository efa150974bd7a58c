"""Exact-name registries whose knobs are the keyword arguments of what is registered.

A part is registered under one exact name; its knobs, their types and defaults are read from its constructor,
so there is no second list to keep in step. Outside packages register through an entry-point group.
"""

import inspect
import traceback
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from compressors.errors import LONGEST_ECHO, UsageError, join_lines, quote, shorten

INTEGER_BITS = 64  # of what torch and files can hold
LONGEST_LIST = 40  # of names in an error
# parameters that take any number of arguments
STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def suggest(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'x'? Known: a, b, c" for an unknown name, in whichever case it is written."""
    names = sorted(known)
    if not names:
        return "; there is none"
    by_lower = {known_name.lower(): known_name for known_name in names}
    listed = names
    heading = "Known"
    if len(names) > LONGEST_LIST:  # a line that fills the screen helps nobody
        listed = [by_lower[close] for close in get_close_matches(name.lower(), by_lower, n=8, cutoff=0.2)]
        heading = "Near"
    closest = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    if not closest:  # swapped letters make a short name unlike
        closest = [known_name for known_name in by_lower if sorted(known_name) == sorted(name.lower())]
    question = f" did you mean '{by_lower[closest[0]]}'?" if closest else ""
    if not listed:
        return f"; none of the {len(names)} known ones is like it"
    return f";{question} {heading}: {', '.join(listed)}"


def conform(value: object, hint: Any, where: str) -> Any:
    """`value` as the type `hint` (lists become tuples, ints floats), or a UsageError that names `where`."""
    if hint in (inspect.Parameter.empty, Any):
        return value
    origin = typing.get_origin(hint)
    options = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return conform_to_one_of(value, hint, options, where)
    if origin is typing.Literal:
        if value in options:
            return value
        raise type_error(value, " | ".join(map(str, options)), where)
    if origin in CONTAINERS:
        return CONTAINERS[origin](value, hint, options, where)
    if hint is tuple and isinstance(value, list):  # JSON and YAML have no tuples
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return convert_to_float(value, where)
    # True is an int to Python; to a user it is not
    is_misplaced_switch = isinstance(value, bool) and hint is not bool
    if isinstance(hint, type) and isinstance(value, hint) and not is_misplaced_switch:
        check_integer_size(value, where)
        return value
    raise type_error(value, getattr(hint, "__name__", hint), where)


def convert_to_float(value: int, where: str) -> float:
    """A whole number as a float, or a UsageError."""
    try:
        return float(value)
    except OverflowError as error:
        raise UsageError(f"{where}={spell_integer(value)}: too large for a number") from error


def check_integer_size(value: object, where: str) -> None:
    """UsageError for a whole number of more than 64 bits."""
    if isinstance(value, int) and value.bit_length() > INTEGER_BITS:
        raise UsageError(f"{where}={spell_integer(value)}: a whole number has at most {INTEGER_BITS} bits")


def spell_integer(value: int) -> str:
    """A whole number as an error shows it; in hexadecimal where it has more digits than Python writes."""
    try:
        return shorten(str(value))
    except ValueError:
        return shorten(hex(value))


def conform_to_one_of(value: object, hint: Any, options: Sequence, where: str) -> Any:
    """`value` as the first of several types that takes it."""
    for option in options:
        try:
            return conform(value, option, where)
        except UsageError:
            continue
    raise type_error(value, hint, where)


def conform_to_list(value: object, hint: Any, options: Sequence, where: str) -> list:
    """list[X] and Sequence[X]."""
    if not isinstance(value, (list, tuple)):
        raise type_error(value, hint, where)
    return [conform(item, options[0], where) for item in value]


def conform_to_mapping(value: object, hint: Any, options: Sequence, where: str) -> dict:
    """dict[K, V] and Mapping[K, V]."""
    if not isinstance(value, Mapping):
        raise type_error(value, hint, where)
    key_hint, item_hint = options
    conformed: dict = {}
    for key, item in value.items():
        conformed[conform(key, key_hint, where)] = conform(item, item_hint, where)
    return conformed


def conform_to_tuple(value: object, hint: Any, options: Sequence, where: str) -> tuple:
    """tuple[X, ...] and tuple[X, Y]."""
    if not isinstance(value, (list, tuple)):
        raise type_error(value, hint, where)
    if options[-1] is Ellipsis:
        return tuple(conform(item, options[0], where) for item in value)
    if len(options) != len(value):
        raise type_error(value, hint, where)
    return tuple(conform(item, option, where) for item, option in zip(value, options))


def type_error(value: object, expected: object, where: str) -> UsageError:
    """What `conform` raises."""
    return UsageError(f"{where}={value!r}: expected {expected}, got {type(value).__name__}")


CONTAINERS: dict[Any, Callable[[object, Any, Sequence, str], Any]] = {
    list: conform_to_list,
    Sequence: conform_to_list,
    dict: conform_to_mapping,
    Mapping: conform_to_mapping,
    tuple: conform_to_tuple,
}


def find_entry_points(group: str) -> dict[str, EntryPoint]:
    """What packages offer in a group, by name; nothing of it is imported.

    UsageError for a name that two packages have.
    """
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=group):
        earlier = points.setdefault(point.name, point)
        if earlier.value != point.value:  # the same value twice: one package, found in two places
            raise UsageError(
                f"{group}: '{point.name}' is offered as {earlier.value} and as {point.value}; "
                "uninstall one of the two packages"
            )
    return points


def loading_error(kind: str, point: EntryPoint, error: Exception) -> UsageError:
    """What to raise for an entry point that does not load."""
    return UsageError(
        f"{kind} '{point.name}' of entry point {point.value} does not load: {error}; "
        "mend or uninstall that package"
    )


@contextmanager
def naming_part(kind: str, name: str, part_class: type) -> Iterator[None]:
    """Exceptions of a part's own code become a UsageError with the part and the line of its file."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    # the code is anyone's, so is what it raises
    except Exception as error:
        reason = join_lines(error)[:LONGEST_ECHO]
        place = find_failed_line(error, part_class)
        raise UsageError(f"{kind} '{name}': {type(error).__name__}: {reason} ({place})") from error


def find_failed_line(error: Exception, part_class: type) -> str:
    """The last line of a class's own file that an exception came through, else where the class begins."""
    try:
        file = inspect.getfile(part_class)
        line = inspect.findsource(part_class)[1] + 1
    except (TypeError, OSError):  # of a notebook's cell
        return part_class.__module__
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == file and frame.lineno is not None:
            line = frame.lineno
    return f"{file}, line {line}"


class Registry:
    """Names -> classes. `context` are constructor arguments that the composed model gives, not the user.

    A part is here because its module was imported (`register`), or because a package offers it in the
    entry-point group. An entry point's name is known at once, its module is imported when it is asked for.
    """

    def __init__(self, kind: str, group: str | None = None, context: tuple[str, ...] = ()):
        self.kind, self.group, self.context = kind, group, frozenset(context)
        self._classes: dict[str, type] = {}

    def register(self, name: str) -> Callable[[type], type]:
        """Class decorator. Registering a name twice is an error."""

        def decorate(cls: Any) -> Any:
            present = self._classes.get(name)
            # the same class again is no conflict: a notebook cell or a module that runs twice
            if present and (present.__module__, present.__qualname__) != (cls.__module__, cls.__qualname__):
                raise UsageError(f"{self.kind} '{name}' is already registered by {present.__module__}")
            self._classes[name] = cls
            cls.registered_name = name
            return cls

        return decorate

    @cached_property
    def entry_points(self) -> dict[str, EntryPoint]:
        """What packages offer, by name; nothing of it is imported."""
        if self.group is None:
            return {}
        return find_entry_points(self.group)

    def names(self) -> list[str]:
        """All names, outside packages' included, sorted."""
        return sorted({*self._classes, *self.entry_points})

    def get(self, name: str) -> type[Any]:
        """The class registered as exactly `name`; otherwise a UsageError with the closest match."""
        if not isinstance(name, str):
            raise UsageError(
                f"{self.kind}={quote(name)}: give its name as text; @register('NAME') gives a class one"
            )
        point = self.entry_points.get(name)
        if point is not None:  # each time: its module may have been reloaded
            self._load(point)
        if name not in self._classes:
            raise UsageError(f"unknown {self.kind} '{name}'{suggest(name, self.names())}")
        return self._classes[name]

    def _load(self, point: EntryPoint) -> None:
        """Import and register what an entry point offers; an error names it."""
        try:
            self.register(point.name)(point.load())
        except Exception as error:
            raise loading_error(self.kind, point, error) from error

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """All constructor parameters of `name`, context included, with resolved annotations. UsageError for a
        constructor that takes whatever it is given: a typo would be one of its knobs."""
        constructor: Any = getattr(self.get(name), "__init__")  # noqa: B009  mypy calls the plain form unsound
        if constructor is object.__init__:  # a class without a constructor of its own has no knobs
            return {}
        with naming_part(self.kind, name, self.get(name)):  # an annotation may name what is not there
            hints = typing.get_type_hints(constructor)
        resolved: dict[str, inspect.Parameter] = {}
        for parameter in list(inspect.signature(constructor).parameters.values())[1:]:  # without self
            stars = STARS.get(parameter.kind)
            if stars:
                raise UsageError(f"{self.kind} '{name}' takes {stars}{parameter.name}; spell its knobs out")
            annotation = hints.get(parameter.name, inspect.Parameter.empty)
            resolved[parameter.name] = parameter.replace(annotation=annotation)
        return resolved

    def knobs(self, name: str) -> dict[str, inspect.Parameter]:
        """What a user may set for `name`."""
        return {knob: p for knob, p in self.parameters(name).items() if knob not in self.context}

    def check(self, name: str, **knobs: object) -> dict[str, object]:
        """The knobs, conformed to their types; an unknown or ill-typed one is a UsageError."""
        parameters = self.knobs(name)
        conformed: dict[str, object] = {}
        for knob, value in knobs.items():
            if knob not in parameters:
                raise UsageError(f"{self.kind} '{name}' has no knob '{knob}'{suggest(knob, parameters)}")
            conformed[knob] = conform(value, parameters[knob].annotation, f"{name}.{knob}")
        return conformed

    def create(self, name: str, **arguments: object) -> Any:
        """Build `name`. Context arguments that its constructor does not take are dropped."""
        parameters = self.parameters(name)
        required = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
        missing = [key for key in required if key not in arguments]
        if missing:
            raise UsageError(f"{self.kind} '{name}' needs {', '.join(missing)}")
        context: dict[str, object] = {}
        knobs: dict[str, object] = {}
        for key, value in arguments.items():
            if key not in self.context:
                knobs[key] = value
            elif key in parameters:
                context[key] = value
        part_class = self.get(name)
        checked = self.check(name, **knobs)
        with naming_part(self.kind, name, part_class):
            try:
                return part_class(**context, **checked)
            except UsageError as error:
                refused_knob, _, _ = str(error).partition("=")
                if refused_knob not in self.knobs(name):
                    raise
                raise type(error)(f"{name}.{error}") from error  # as the command line calls it
