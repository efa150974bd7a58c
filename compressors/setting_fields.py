"""Settings as the fields of a dataclass: each with a default, a meaning and bounds, and nothing else.

Help texts, types and errors come from there. What a line says of them is read in `key_value.py`.
"""

import dataclasses
import math
import operator
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import cache
from typing import Any, NamedTuple, get_type_hints

from compressors.errors import UsageError

BOUNDS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("low", operator.ge, "at least"),
    ("above", operator.gt, "more than"),
    ("below", operator.lt, "less than"),
)


def setting(default: object, meaning: str, **rules: object) -> Any:
    """A dataclass field that is a setting.

    Rules: `low` (at least), `above` (more than), `below` (less than),
    `form` (a regular expression, and its meaning in words), `choices` (or a function that lists
    them when they are asked for), `required` (has no default), and `was`, the flags that the setting had
    before there was one grammar.
    """
    metadata = {"help": meaning, **rules}
    if isinstance(default, list):
        # dataclasses refuse a list as a default: all instances would share it
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


class Setting(NamedTuple):
    """What is known of one setting: its type, default and meaning, and its rules."""

    hint: Any
    default: object
    help: str
    rules: dict[str, Any]

    @property
    def choices(self) -> tuple[object, ...]:
        """What it may be; nothing where it is free."""
        return list_choices(self.rules)


def list_choices(rules: Mapping[str, Any]) -> tuple[object, ...]:
    """The choices that a setting's rules name, or list when asked."""
    choices = rules.get("choices", ())
    if callable(choices):
        choices = choices()
    return tuple(choices)


@cache
def collect_settings(root: type) -> dict[str, Setting]:
    """Every setting of a dataclass, and of the dataclasses inside it, by dotted path and in order."""
    collected: dict[str, Setting] = {}

    def walk(section: type, prefix: str) -> None:
        hints = get_type_hints(section)
        defaults = section()
        for item in dataclasses.fields(section):
            hint = hints[item.name]
            if dataclasses.is_dataclass(hint):
                walk(typing.cast(type, hint), f"{prefix}{item.name}.")
            elif "help" in item.metadata:
                rules = dict(item.metadata)
                meaning = rules.pop("help")
                collected[prefix + item.name] = Setting(hint, getattr(defaults, item.name), meaning, rules)

    walk(root, "")
    return collected


def check_bounds(path: str, value: Any, rules: Mapping[str, Any]) -> None:
    """UsageError when a value is outside its setting's bounds or choices."""
    choices = list_choices(rules)
    for item in value if isinstance(value, list) else [value]:
        if choices and item not in choices:
            raise UsageError(f"{path}={item}: must be one of {join_choices(choices)}")
    if value is None:
        return
    for rule, holds, words in BOUNDS:
        if rule in rules and not holds(value, rules[rule]):  # nothing holds for nan
            raise UsageError(f"{path}={value}: must be {words} {rules[rule]}")
    if "form" in rules:
        pattern, words = rules["form"]
        if not re.fullmatch(pattern, value):
            raise UsageError(f"{path}={value}: must be {words}")
    check_finite(path, value)


def check_finite(path: str, value: object) -> None:
    """UsageError when a float, or one in a list, is nan or infinite."""
    if isinstance(value, (list, tuple)):
        for item in value:
            check_finite(path, item)
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{path}={value}: must be a finite number")


def join_choices(choices: Sequence[object]) -> str:
    """Choices as they would be typed."""
    return ", ".join(map(format_value, choices))


def format_value(value: object) -> str:
    """A value as it would be typed."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}: {format_value(item)}" for key, item in value.items()) + "}"
    return str(value)
