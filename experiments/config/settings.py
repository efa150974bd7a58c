"""What settings and knobs may be: the checks that presets, table files and the command line share."""

import copy
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from compressors.errors import UsageError, shorten
from compressors.registry import check_integer_size, conform, suggest
from compressors.setting_fields import check_bounds, check_finite, collect_settings, format_value
from experiments.config import signatures
from experiments.config.schema import Config

MOST_SUGGESTIONS = 3
COUNTS = 2**31  # whole numbers stay below, for all that is counted in 32 bits


def locate_setting(path: str, asked_parts: Sequence[str] = ()) -> bool:
    """True: `path` is a setting; False: a part's knob, PART.KNOB. Else a UsageError with the closest name;
    where that is a knob, of the parts that are asked for if they have it."""
    settings = collect_settings(Config)
    if path in settings:
        return True
    if path.lower() in settings:
        raise UsageError(f"unknown setting '{path}'; did you mean '{path.lower()}'?")
    head, _, knob = path.partition(".")
    section = f"{head}."
    section_paths = [setting for setting in settings if setting.startswith(section)]
    if section_paths and knob:
        hint = suggest_other_section(knob) or suggest(path, section_paths)
        raise UsageError(f"unknown setting '{path}'{hint}")
    if section_paths:
        raise UsageError(f"'{path}' is a section; set {', '.join(section_paths)}")
    owners = find_part_owners(head)
    if owners and knob:
        return False
    if owners:
        raise UsageError(f"'{path}' is a {owners[0].kind}; its knobs are set as {path}.KNOB=...")
    raise UsageError(f"unknown setting '{path}'{suggest_setting(path, asked_parts)}")


def suggest_setting(path: str, asked_parts: Sequence[str] = ()) -> str:
    """What may have been meant: `lr` is in two sections, `rate` is a knob, `finetun.lr` is close to one."""
    hint = suggest_other_section(path) or suggest_knob(path, asked_parts)
    if hint:
        return hint
    heads = {setting.partition(".")[0] for setting in collect_settings(Config)}
    for registry in signatures.registries():
        # projectors have names such as `linear`, which nobody means by a setting
        if registry is not signatures.projectors():
            heads.update(registry.names())
    return suggest(path.partition(".")[0], heads)


def suggest_other_section(name: str) -> str:
    """The sections that have a setting of that name; nothing if none has."""
    ending = f".{name.lower()}"
    full_paths = [setting for setting in collect_settings(Config) if setting.endswith(ending)]
    return f"; did you mean {' or '.join(full_paths)}?" if full_paths else ""


def suggest_knob(name: str, asked_parts: Sequence[str]) -> str:
    """The parts that have a knob of that name, those that are asked for before all others; nothing if none
    has."""
    every_part: list[str] = []
    for registry in signatures.registries():
        every_part += registry.list_built_in()  # to ask an outside package's is to import it
    for parts in (asked_parts, every_part):
        paths = [f"{part}.{name.lower()}" for part in dict.fromkeys(parts) if has_knob(part, name.lower())]
        if len(paths) > MOST_SUGGESTIONS:
            return f"; did you mean PART.{name.lower()}, such as '{paths[0]}'?"
        if paths:
            quoted_paths = [f"'{path}'" for path in paths]
            return f"; did you mean {' or '.join(quoted_paths)}?"
    return ""


def has_knob(part: str, knob: str) -> bool:
    """Whether a part of that name has a knob of that name; not where it cannot be asked."""
    return any(knob in registry.find_knobs(part) for registry in signatures.registries())


def find_part_owners(part: str) -> list[signatures.SignatureRegistry]:
    """The registries that have a part of that name."""
    return [registry for registry in signatures.registries() if part in registry.names()]


def takes_list(path: str) -> bool:
    """Whether one value of a setting or knob may be a list; False for what is neither."""
    setting = collect_settings(Config).get(path)
    if setting is not None:
        pattern, _ = setting.rules.get("form", ("", ""))
        # trainer.devices is text, that of a list among others
        return has_type(setting.hint, list, tuple, Sequence) or bool(re.fullmatch(pattern, "[0]"))
    return any(has_type(hint, list, tuple, Sequence) for hint in find_knob_types(path))


def takes_mapping(path: str) -> bool:
    """Whether one value of a knob may be a mapping; False for what is none."""
    return any(has_type(hint, dict, Mapping) for hint in find_knob_types(path))


def find_knob_types(path: str) -> list[Any]:
    """The types that the knob PART.KNOB has in the parts of that name."""
    part, _, knob = path.partition(".")
    parameters = [owner.knobs(part).get(knob) for owner in find_part_owners(part)]
    return [parameter.annotation for parameter in parameters if parameter is not None]


def has_type(hint: Any, *wanted_types: Any) -> bool:
    """Whether a type is one of those wanted, or has one among its alternatives."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(has_type(option, *wanted_types) for option in typing.get_args(hint))
    return (origin or hint) in wanted_types


def conform_setting(path: str, value: object) -> object:
    """`value` as the type of the setting `path` and within its bounds, or a UsageError."""
    refuse_lookup(path, value)
    setting = collect_settings(Config)[path]
    if setting.hint == list[str]:
        if isinstance(value, str):  # one file
            value = [value]
        words = list(conform(value, tuple[str, ...], path))
        check_bounds(path, words, setting.rules)
        return words
    if setting.hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        check_integer_size(value, path)
        value = str(value)  # precision: 32 in a YAML file
    if setting.hint is str and isinstance(value, list) and takes_list(path):
        value = format_value(value)  # devices: [0, 1] in a YAML file
    conformed = conform(value, setting.hint, path)
    rules = setting.rules
    if isinstance(conformed, list):
        for entry in conformed:
            check_bounds(path, entry, rules)
        return conformed
    if isinstance(conformed, int) and "below" not in rules:
        rules = {**rules, "below": COUNTS}
    check_bounds(path, conformed, rules)
    return conformed


def refuse_lookup(path: str, value: object) -> None:
    """UsageError for `${...}`, at any depth: what a setting is stands in it, and nothing of the environment
    comes into results."""
    if isinstance(value, str) and "${" in value:
        raise UsageError(f"{path}={shorten(value)}: nothing is looked up in ${{...}}; write the value itself")
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for entry in value:
            refuse_lookup(path, entry)


def assign_setting(config: Config, path: str, value: object) -> None:
    """Set a dotted path."""
    *sections, name = path.split(".")
    target: Any = config
    for section in sections:
        target = getattr(target, section)
    # a list of the preset must not be shared by all cells that start from it
    setattr(target, name, copy.copy(value))


def check_knob(part: str, knob: str, value: object) -> object:
    """A knob conformed to the signature of the part of that name that has it, or a UsageError."""
    refuse_lookup(f"{part}.{knob}", value)
    owners = find_part_owners(part)
    owner = owners[0]  # it explains what is wrong with a knob that nobody has
    for registry in owners:
        # a compressor and a projector are called `identity`
        if knob in registry.knobs(part):
            owner = registry
            break
    conformed = owner.check(part, **{knob: value})[knob]
    check_finite(f"{part}.{knob}", conformed)
    return conformed
