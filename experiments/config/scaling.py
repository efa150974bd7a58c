"""Values that grow with the model, from the `config.json` of tower and LLM; torch is not imported.

{tower_width: 0.5}            that multiple of the tower's width, rounded to a multiple of the heads used
{depth: 0.85}                 that decoder layer: 0.85 of the layers, at least the first
{depth: [0.1, preset, 0.85]}  several layers; `preset`: what the preset (or the row) has anyway
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressors.errors import UsageError
from compressors.reading import read_json_file
from connectors.hub import is_open_clip, split_open_clip
from experiments.config.schema import Config
from experiments.config.settings import find_part_owners
from experiments.config.sources import resolve_source
from experiments.runtime.memory import remember_for_request

PRESET_VALUE = "preset"
LARGEST_SHARES = {"depth": 1, "tower_width": 64}  # by unit
# how configurations call the same thing, inside `vision_config` or `text_config` if they have one
WIDTH_NAMES = ("hidden_size", "width", "embed_dim")
LAYER_NAMES = ("num_hidden_layers", "n_layer", "num_layers")
HEAD_NAMES = ("num_attention_heads", "n_head")
MODEL_CONFIG_FILE = "config.json"
HUB_SECONDS = 10  # until a hub that does not answer counts as out of reach


def scale_overrides(rules: Mapping[str, object], config: Config) -> dict[str, str]:
    """{PART.KNOB: {unit: fraction(s)}} -> overrides for the model of `config`."""
    overrides: dict[str, str] = {}
    for key, rule in rules.items():
        values = scale_knob(key, rule, config)
        if len(values) == 1:
            overrides[key] = str(values[0])  # a single layer is a number: the same cell as `at=3`
        else:
            overrides[key] = f"[{','.join(map(str, values))}]"
    return overrides


def scale_knob(key: str, rule: object, config: Config) -> list[int]:
    """The values of one knob, in order, each once."""
    if not isinstance(rule, dict) or len(rule) != 1 or not rule.keys() <= LARGEST_SHARES.keys():
        raise UsageError(f"scaled: {key}: {rule!r}: expected {{depth: FRACTION}} or {{tower_width: FACTOR}}")
    ((unit, shares),) = rule.items()
    if not isinstance(shares, list):
        shares = [shares]
    values: list[int] = []
    for share in shares:
        if share == PRESET_VALUE:
            values += list_preset_values(key, config)
        else:
            values.append(scale_value(key, unit, share, config))
    if not values:
        raise UsageError(f"scaled: {key}: {unit}: give at least one fraction")
    return sorted(set(values))


def scale_value(key: str, unit: str, share: object, config: Config) -> int:
    """One value from one fraction."""
    largest = LARGEST_SHARES[unit]
    # True is a number to Python
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= largest:
        bounds = f"more than 0 and at most {largest}"
        raise UsageError(f"scaled: {key}: {unit}={share}: expected a number {bounds}, or '{PRESET_VALUE}'")
    if unit == "depth":
        layers = read_model_size("llm.source", config.llm.source, LAYER_NAMES)
        return max(1, round(share * layers))
    heads = count_heads(key, config)
    width = read_model_size("tower.source", config.tower.source, WIDTH_NAMES)
    return heads * max(1, round(share * width / heads))


def list_preset_values(key: str, config: Config) -> list[int]:
    """What a knob is without us."""
    part, _, knob = key.partition(".")
    preset_value = find_knob_value(part, knob, config)
    numbers = [preset_value]
    if isinstance(preset_value, (list, tuple)):  # several layers
        numbers = list(preset_value)
    if not all(isinstance(number, int) for number in numbers):
        raise UsageError(
            f"scaled: {key}: '{PRESET_VALUE}' stands for a value that is not a number: {preset_value!r}"
        )
    return numbers


def count_heads(key: str, config: Config) -> int:
    """The attention heads that a width is divided among: the part's own knob, else the LLM's."""
    heads = find_knob_value(key.partition(".")[0], "heads", config)
    return heads or read_model_size("llm.source", config.llm.source, HEAD_NAMES)


def find_knob_value(part: str, knob: str, config: Config) -> Any:
    """A knob as the configuration sets it, else its default; None for what is no part or no knob."""
    knobs = config.knobs(part)
    owners = find_part_owners(part)
    if owners:
        knobs = owners[0].settled(part, knobs)
    return knobs.get(knob)


def read_model_size(setting: str, source: str, names: tuple[str, ...]) -> int:
    """A number out of a model's configuration."""
    content = read_model_config(setting, source)
    section = "text_config"
    if setting.startswith("tower"):
        section = "vision_config"
    places = [content]
    if isinstance(content.get(section), dict):
        # the sizes beside the section are those of the whole model, such as its projector's
        places.insert(0, content[section])
    for place in places:
        for name in names:
            if isinstance(place.get(name), int):
                return place[name]
    raise UsageError(
        f"{setting}={source}: its config.json has no {' or '.join(names)}; set the values that "
        "a table scales with the model on the command line instead"
    )


def read_widths(config: Config) -> dict[str, int]:
    """The widths of a cell's tower and LLM, as compressors take them. UsageError if they cannot be had."""
    return {
        "dim": read_model_size("tower.source", config.tower.source, WIDTH_NAMES),
        "llm_dim": read_model_size("llm.source", config.llm.source, WIDTH_NAMES),
    }


@remember_for_request()
def read_model_config(setting: str, source: str) -> dict[str, Any]:
    """The config.json of a tower or LLM, or a UsageError that names the setting."""
    path = find_model_config(source)
    try:
        content = read_json_file(path)
    except UsageError as error:
        raise UsageError(
            f"{setting}={source}: no readable config.json, whose sizes this table needs; give "
            "a folder that save_pretrained wrote, or a hub id that this machine can reach"
        ) from error
    if not isinstance(content, dict):
        raise UsageError(f"{setting}={source}: {path} is no model configuration")
    if is_open_clip(source):
        return content.get("vision_cfg", {})
    return content


def find_model_config(source: str) -> Path:
    """Where the configuration of a tower or LLM lies, whether or not it is there."""
    if is_open_clip(source):
        return find_open_clip_config(source)
    folder = Path(resolve_source(source))
    if folder.is_dir():
        return folder / MODEL_CONFIG_FILE
    return find_hub_config(source)


def find_open_clip_config(source: str) -> Path:
    """open_clip's own description of an architecture."""
    name, _ = split_open_clip(source)
    spec = find_spec("open_clip")
    assert spec is not None and spec.submodule_search_locations  # in setup.cfg's requirements
    return Path(spec.submodule_search_locations[0]) / "model_configs" / f"{name}.json"


def find_hub_config(source: str) -> Path:
    """config.json of a hub id: from its cache, else downloaded. A missing file's path if neither works."""
    # two tenths of a second that only a hub id has to wait for
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(source, MODEL_CONFIG_FILE, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        pass
    try:
        # one try, where a download has five
        get_hf_file_metadata(hf_hub_url(source, MODEL_CONFIG_FILE), timeout=HUB_SECONDS)
        return Path(hf_hub_download(source, MODEL_CONFIG_FILE))
    except Exception:  # no network, no such model, no permission, in the words of several libraries
        return Path(source) / MODEL_CONFIG_FILE
