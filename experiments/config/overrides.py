"""What the command line may say: `key=value`, commas at top level make a product.

compressor=avg_pool,sap  seed=0,1,2  embq.at=[2,4],3        ->  2 x 3 x 2 cells
"""

from functools import cache
from itertools import product
from typing import NamedTuple

from omegaconf import OmegaConf

from compressors.errors import UsageError, shorten, shorten_reason
from compressors.key_value import WITH_EXPONENT, read_exponent, require_single, unquote_text
from compressors.setting_fields import collect_settings
from experiments.config.schema import Config
from experiments.config.settings import check_knob, conform_setting, locate_setting
from experiments.config.yaml_numbers import quote_old_numbers


class Override(NamedTuple):
    """An override that was checked: of a setting, else of a part's knob."""

    is_setting: bool
    value: object


def take_single_value(axes: dict[str, list[str]], key: str, default: str | None = None) -> str | None:
    """The value of a key that takes one, removed from the axes, without quotes around it; `default` where it
    is not given."""
    if key not in axes:
        return default
    return unquote_text(require_single(key, axes.pop(key)))


def take_values(axes: dict[str, list[str]], key: str) -> list[str] | None:
    """The values of a key, removed from the axes, without quotes around them; None where it is not given."""
    if key not in axes:
        return None
    return list(map(unquote_text, axes.pop(key)))


def combine_axes(axes: dict[str, list[str]]) -> list[dict[str, str]]:
    """The product of all alternatives; the last key varies fastest."""
    return [dict(zip(axes, values)) for values in product(*axes.values())]


# A table's cells differ in few of their overrides, and the rest would be read for each cell again.
@cache
def parse_override(path: str, text: str, asked_parts: tuple[str, ...] = ()) -> Override:
    """An override with its value, checked; a UsageError names what is wrong with it, and where it is a knob
    without its part, those of `asked_parts` that have it."""
    if locate_setting(path, asked_parts):
        return Override(True, parse_setting(path, text))
    part, knob = path.split(".", 1)
    return Override(False, check_knob(part, knob, parse_value(text, path)))


def parse_setting(path: str, text: str) -> object:
    """`text` as the type of the setting `path`: words stay as they are, a single file is a list of one."""
    hint = collect_settings(Config)[path].hint
    words = unquote_text(text)
    if hint is str or (hint == str | None and text != "null"):
        return conform_setting(path, words)
    if hint == list[str] and not text.startswith("["):
        return conform_setting(path, [words])
    return conform_setting(path, parse_value(text, path))


def parse_value(text: str, where: str) -> object:
    """A number, word, list or mapping as YAML reads it; 1e3 is a whole number, `${...}` a word."""
    if WITH_EXPONENT.fullmatch(text):
        return read_exponent(text)
    if not text:
        return text
    try:
        parsed = OmegaConf.from_dotlist([f"value={quote_old_numbers(text)}"])
        content = OmegaConf.to_container(parsed, resolve=False)
    except Exception as error:  # as in `read_yaml`
        raise UsageError(f"{where}={shorten(text)}: not a value: {shorten_reason(error)}") from error
    assert isinstance(content, dict)  # a dot list is a mapping
    return content["value"]
