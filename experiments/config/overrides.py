"""What the command line may say: `key=value`, commas at top level make a product.

compressor=avg_pool,sap  seed=0,1,2  embq.at=[2,4],3        ->  2 x 3 x 2 cells
"""

import re
from itertools import product

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from compressors.command_line import check_bounds, collect_settings
from compressors.errors import UsageError
from compressors.registry import conform, suggest
from experiments.config import signatures
from experiments.config.schema import Config

WHOLE_NUMBER = re.compile(r"[+-]?\d+[eE]\+?\d+")  # 1e3: YAML calls it a float


def take_single_value(axes: dict[str, list[str]], key: str, default: str | None = None) -> str | None:
    """The value of a key that takes one, removed from the axes; `default` where it is not given."""
    values = axes.pop(key, [default])
    if len(values) > 1:
        raise UsageError(f"{key}={','.join(values)}: takes one value")
    return values[0]


def combine_axes(axes: dict[str, list[str]]) -> list[dict[str, str]]:
    """The product of all alternatives; the last key varies fastest."""
    return [dict(zip(axes, values)) for values in product(*axes.values())]


def parse_value(text: str, where: str) -> object:
    """A number, word, list or mapping as YAML reads it; 1e3 is a whole number."""
    if WHOLE_NUMBER.fullmatch(text):
        return int(float(text))
    if not text:
        return text
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]), resolve=True)["value"]
    except (YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"{where}={text}: not a value: {str(error).splitlines()[0]}") from error


def parse_setting(path: str, text: str) -> object:
    """`text` as the type of the setting `path`: words stay as they are, a single file is a list of one."""
    hint = collect_settings(Config)[path].hint
    words = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'" else text
    if hint is str or (hint == str | None and text != "null"):
        return conform_setting(path, words)
    if hint == list[str] and not text.startswith("["):
        return conform_setting(path, [words])
    return conform_setting(path, parse_value(text, path))


def conform_setting(path: str, value: object) -> object:
    """`value` as the type of the setting `path` and within its bounds, or a UsageError."""
    hint = collect_settings(Config)[path].hint
    if hint == list[str]:
        return list(conform([value] if isinstance(value, str) else value, tuple[str, ...], path))
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = str(value)  # precision: 32 in a YAML file
    value = conform(value, hint, path)
    check_bounds(path, value, collect_settings(Config)[path].rules)
    return value


def locate_setting(path: str) -> bool:
    """True: `path` is a setting; False: a part's knob, PART.KNOB. Else a UsageError with the closest name."""
    if path in collect_settings(Config):
        return True
    head, _, knob = path.partition(".")
    inside = [p for p in collect_settings(Config) if p.startswith(f"{head}.")]
    if inside:
        raise UsageError(
            f"unknown setting '{path}'{suggest(path, inside)}"
            if knob
            else f"'{path}' is a section; set {', '.join(inside)}"
        )
    owners = [r for r in signatures.registries() if head in r.names()]
    if owners and knob:
        return False
    if owners:
        raise UsageError(f"'{path}' is a {owners[0].kind}; its knobs are set as {path}.KNOB=...")
    tails = [p for p in collect_settings(Config) if p.endswith(f".{path}")]
    if tails:
        raise UsageError(f"unknown setting '{path}'; did you mean {' or '.join(tails)}?")
    sections = {p.partition(".")[0] for p in collect_settings(Config)}
    parts = {n for r in signatures.registries() if r is not signatures.projectors() for n in r.names()}
    raise UsageError(f"unknown setting '{path}'{suggest(head, sections | parts)}")
