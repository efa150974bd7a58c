"""Presets: YAML files with settings and knobs, every one checked.

`preset:` inside a file names the one that it starts from, and `wants:` has settings that hold for one
compressor: `wants: {qformer: {pretrain.lr: 1e-3}}`.
"""

import copy
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from omegaconf import OmegaConf

from compressors.errors import UsageError, shorten_reason
from compressors.reading import read_text_file
from compressors.registry import conform, suggest
from compressors.setting_fields import collect_settings
from experiments.config import signatures
from experiments.config.schema import Config
from experiments.config.settings import assign_setting, check_knob, conform_setting, locate_setting
from experiments.config.yaml_numbers import quote_old_numbers
from experiments.runtime.memory import remember_for_request

PRESET_FOLDER = Path(__file__).parents[1] / "presets"
YAML_SUFFIXES = (".yaml", ".yml")


class Preset(NamedTuple):
    """A configuration, knobs by part, and settings by the compressor that wants them. Not to be changed."""

    config: Config
    knobs: dict[str, dict[str, Any]]
    wants: dict[str, dict[str, Any]]


def list_presets() -> list[str]:
    """The names of the presets that the package brings."""
    return sorted(path.stem for path in PRESET_FOLDER.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, or a UsageError that names the file. `${...}` is text: a file that somebody else wrote
    does not look into this environment."""
    text = read_text_file(path)
    try:
        content = OmegaConf.to_container(OmegaConf.load(io.StringIO(quote_old_numbers(text))), resolve=False)
    # whatever: beside its own errors the library lets out those of numbers, dates, tags and of depth
    except Exception as error:
        raise UsageError(f"{path}: not readable as YAML: {shorten_reason(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: expected settings (key: value), found a {type(content).__name__}")
    return cast(dict[str, Any], content)  # a key that is a number in YAML is no key that anybody knows


def find_preset_file(name: str) -> Path:
    """The file of a preset's name, or a path that ends in .yaml; a UsageError for an unknown name."""
    if name.endswith(YAML_SUFFIXES):
        if not Path(name).exists():
            raise UsageError(f"preset={name}: no such file")
        return Path(name)
    preset_names = list_presets()
    if name not in preset_names:
        closest = suggest(name, preset_names)
        raise UsageError(f"unknown preset '{name}'{closest}, or a path that ends in .yaml")
    return PRESET_FOLDER / f"{name}.yaml"


@remember_for_request()
def load_preset(name: str, above: tuple[str, ...] = ()) -> Preset:
    """A preset by name or path, or a UsageError that names the file. `above`: those that start from it."""
    path = find_preset_file(name)
    if name in above:
        raise UsageError(f"{path}: presets start from each other in a circle: {' -> '.join((*above, name))}")
    content = read_yaml(path)
    if not content:  # its cells would have defaults alone, which fit no particular model
        raise UsageError(f"{path}: the preset file is empty; write settings into it, or preset: tiny")
    base = conform(content.pop("preset", None), str | None, f"{path}: preset")
    wants_content = content.pop("wants", {})
    preset = Preset(Config(), {}, {})
    if base:
        # a copy: the base stays as it is for others that start from it
        preset = copy.deepcopy(load_preset(base, (*above, name)))
    try:
        for key, value in flatten_mapping(content):
            if locate_setting(key):
                assign_setting(preset.config, key, conform_setting(key, value))
            else:
                part, knob = key.split(".", 1)
                preset.knobs.setdefault(part, {})[knob] = check_knob(part, knob, value)
        for compressor, settings in check_wants(wants_content).items():
            preset.wants.setdefault(compressor, {}).update(settings)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    preset.config.preset = name
    return preset


def check_wants(content: object) -> dict[str, dict[str, Any]]:
    """A preset's `wants`, checked: settings of sections by compressor. No knobs, which stand under their
    part's name."""
    if not isinstance(content, Mapping) or not all(isinstance(value, Mapping) for value in content.values()):
        raise UsageError("wants: expected COMPRESSOR: {SETTING: VALUE}")
    wants: dict[str, dict[str, Any]] = {}
    for name, section in content.items():
        compressor = signatures.compressors().require(str(name))
        wants[compressor] = {}
        for key, value in flatten_mapping(section):
            if not locate_setting(key) or "." not in key:
                raise UsageError(
                    f"wants.{compressor}: '{key}' cannot be here; settings of a section can, such "
                    "as pretrain.lr"
                )
            wants[compressor][key] = conform_setting(key, value)
    return wants


def flatten_mapping(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a nested mapping."""
    for key, value in content.items():
        # a mapping is a section, unless it is what a setting says
        if isinstance(value, Mapping) and f"{prefix}{key}" not in collect_settings(Config):
            yield from flatten_mapping(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
