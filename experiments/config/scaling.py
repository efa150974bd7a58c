"""Values that grow with the model, from the `config.json` of tower and LLM; torch is not imported.

{tower_width: 0.5}            that multiple of the tower's width, rounded to a multiple of the heads used
{depth: 0.85}                 that decoder layer: 0.85 of the layers, at least the first
{depth: [0.1, preset, 0.85]}  several layers; `preset`: what the preset (or the row) has anyway
"""

import json
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressors.errors import UsageError
from experiments.config import signatures
from experiments.config.schema import Config, resolve_source

PRESET_VALUE = "preset"
# how configurations call the same thing, inside `vision_config` or `text_config` if they have one
WIDTH_NAMES, LAYER_NAMES = (
    ("hidden_size", "width", "embed_dim"),
    ("num_hidden_layers", "n_layer", "num_layers"),
)
HEAD_NAMES = ("num_attention_heads", "n_head")
OPEN_CLIP_SCHEME, MODEL_CONFIG_FILE = "open_clip:", "config.json"


def scale_overrides(rules: Mapping[str, object], config: Config) -> dict[str, str]:
    """{PART.KNOB: {unit: fraction(s)}} -> overrides for the model of `config`."""
    return {key: format_values(scale_knob(key, rule, config)) for key, rule in rules.items()}


def scale_knob(key: str, rule: object, config: Config) -> list[int]:
    """The values of one knob, in order, each once."""
    if not isinstance(rule, dict) or len(rule) != 1 or set(rule) - {"depth", "tower_width"}:
        raise UsageError(f"scaled: {key}: {rule!r}: expected {{depth: FRACTION}} or {{tower_width: FACTOR}}")
    ((unit, given),) = rule.items()
    found: list[int] = []
    for each in given if isinstance(given, list) else [given]:
        found += (
            list_preset_values(key, config)
            if each == PRESET_VALUE
            else [scale_value(key, unit, each, config)]
        )
    if not found:
        raise UsageError(f"scaled: {key}: {unit}: give at least one fraction")
    return sorted(set(found))


def scale_value(key: str, unit: str, share: object, config: Config) -> int:
    """One value from one fraction."""
    number = isinstance(share, (int, float)) and not isinstance(share, bool)
    if not number or not 0 < share <= (1 if unit == "depth" else 64):
        bounds = "more than 0 and at most 1" if unit == "depth" else "more than 0 and at most 64"
        raise UsageError(f"scaled: {key}: {unit}={share}: expected a number {bounds}, or '{PRESET_VALUE}'")
    if unit == "depth":
        return max(1, round(share * read_model_size("llm.source", config.llm.source, LAYER_NAMES)))
    heads = count_heads(key, config)
    return heads * max(
        1, round(share * read_model_size("tower.source", config.tower.source, WIDTH_NAMES) / heads)
    )


def list_preset_values(key: str, config: Config) -> list[int]:
    """What a knob is without us."""
    part, _, knob = key.partition(".")
    found = config.knobs(part).get(knob, list_knob_defaults(part).get(knob))
    numbers = found if isinstance(found, (list, tuple)) else [found]
    if not all(isinstance(n, int) for n in numbers):
        raise UsageError(
            f"scaled: {key}: '{PRESET_VALUE}' stands for a value that is not a number: {found!r}"
        )
    return list(numbers)


def count_heads(key: str, config: Config) -> int:
    """The attention heads that a width is divided among: the part's own knob, else the LLM's."""
    part = key.partition(".")[0]
    known = config.knobs(part).get("heads", list_knob_defaults(part).get("heads"))
    return known or read_model_size("llm.source", config.llm.source, HEAD_NAMES)


def list_knob_defaults(part: str) -> dict[str, Any]:
    """The knobs of a part with their defaults; nothing for what is no part."""
    return next((owner.settled(part, {}) for owner in signatures.registries() if part in owner.names()), {})


def format_values(values: list[int]) -> str:
    """As the command line has it; a single layer is a number, so that it is the same cell as `at=3`."""
    return str(values[0]) if len(values) == 1 else f"[{','.join(map(str, values))}]"


def read_model_size(setting: str, source: str, names: tuple[str, ...]) -> int:
    """A number out of a model's configuration."""
    content = read_model_config(setting, source)
    inner = content.get("vision_config" if setting.startswith("tower") else "text_config")
    for place in (inner if isinstance(inner, dict) else {}, content):
        for name in names:
            if isinstance(place.get(name), int):
                return place[name]
    raise UsageError(
        f"{setting}={source}: its config.json has no {' or '.join(names)}; set the values that "
        "a table scales with the model on the command line instead"
    )


@cache
def read_model_config(setting: str, source: str) -> dict[str, Any]:
    """The config.json of a tower or LLM, or a UsageError that names the setting."""
    path = find_open_clip_config(source) if source.startswith(OPEN_CLIP_SCHEME) else None
    if path is None:
        folder = Path(resolve_source(source))
        path = folder / MODEL_CONFIG_FILE if folder.is_dir() else find_hub_config(source)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{setting}={source}: no readable config.json, whose sizes this table needs; give "
            "a folder that save_pretrained wrote, or a hub id that this machine can reach"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{setting}={source}: {path} is no model configuration")
    if source.startswith(OPEN_CLIP_SCHEME):
        return content.get("vision_cfg", {})
    return content


def find_open_clip_config(source: str) -> Path:
    """open_clip's own description of an architecture."""
    name = source.split(":")[1]
    return Path(find_spec("open_clip").submodule_search_locations[0]) / "model_configs" / f"{name}.json"


def find_hub_config(source: str) -> Path:
    """config.json of a hub id: from its cache, else downloaded. A missing file's path if neither works."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, MODEL_CONFIG_FILE, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        get_hf_file_metadata(
            hf_hub_url(source, MODEL_CONFIG_FILE), timeout=10
        )  # one try, where a download has five
        return Path(hf_hub_download(source, MODEL_CONFIG_FILE))
    except Exception:  # no network, no such model, no permission, in the words of several libraries
        return Path(source) / MODEL_CONFIG_FILE
