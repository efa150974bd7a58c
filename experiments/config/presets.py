"""Presets: YAML files with settings and knobs, every one checked.

`preset:` inside a file names the one that it starts from, and `wants:` has settings that hold for one
compressor: `wants: {qformer: {pretrain.lr: 1e-3}}`.
"""

import copy
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config import signatures
from experiments.config.overrides import conform_setting, locate_setting
from experiments.config.schema import Config

PRESET_FOLDER = Path(__file__).parents[1] / "presets"


class Preset(NamedTuple):
    """A configuration, knobs by part, and settings by the compressor that wants them. Not to be changed."""

    config: Config
    knobs: dict[str, dict[str, Any]]
    wants: dict[str, dict[str, Any]]


def list_presets() -> list[str]:
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, or a UsageError that names the file."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected settings (key: value), found a {type(found).__name__}")
    return found


@cache
def load_preset(name: str, above: tuple[str, ...] = ()) -> Preset:
    """A preset by name or path, or a UsageError that names the file."""
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else PRESET_FOLDER / f"{name}.yaml"
    if not is_file and name not in list_presets():
        known = suggest(name, list_presets())
        raise UsageError(f"unknown preset '{name}'{known}, or a path that ends in .yaml")
    if name in above:
        raise UsageError(f"{path}: presets start from each other in a circle: {' -> '.join((*above, name))}")
    content = read_yaml(path)
    base = content.pop("preset", None)
    wanted = content.pop("wants", {})
    config, knobs, wants = copy.deepcopy(
        load_preset(base, (*above, name)) if base else Preset(Config(), {}, {})
    )
    try:
        for key, value in flatten_mapping(content):
            if locate_setting(key):
                assign_setting(config, key, conform_setting(key, value))
            else:
                part, knob = key.split(".", 1)
                knobs.setdefault(part, {})[knob] = check_knob(part, knob, value)
        for compressor, settings in check_wants(wanted).items():
            wants.setdefault(compressor, {}).update(settings)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    config.preset = name
    return Preset(config, knobs, wants)


def check_wants(content: object) -> dict[str, dict[str, Any]]:
    """A preset's `wants`, checked: settings of sections by compressor, no knobs, which are under their part's
    name."""
    if not isinstance(content, Mapping) or not all(isinstance(each, Mapping) for each in content.values()):
        raise UsageError("wants: expected COMPRESSOR: {SETTING: VALUE}")
    found = {}
    for compressor, settings in content.items():
        signatures.compressors().require(str(compressor))
        told = dict(flatten_mapping(settings))
        other = next((key for key in told if not locate_setting(key) or "." not in key), None)
        if other is not None:
            raise UsageError(
                f"wants.{compressor}: '{other}' cannot be here; settings of a section can, such "
                "as pretrain.lr"
            )
        found[str(compressor)] = {key: conform_setting(key, value) for key, value in told.items()}
    return found


def flatten_mapping(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a nested mapping."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flatten_mapping(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def assign_setting(config: Config, path: str, value: object) -> None:
    """Set a dotted path."""
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, copy.copy(value))


def check_knob(part: str, knob: str, value: object) -> object:
    """A knob conformed to the signature of the part of that name that has it, or a UsageError."""
    owners = [r for r in signatures.registries() if part in r.names()]
    owner = next((r for r in owners if knob in r.knobs(part)), owners[0])
    return owner.check(part, **{knob: value})[knob]
