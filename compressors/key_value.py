"""KEY=VALUE: the text of settings, split at its commas, read as the types of their fields, written again."""

import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compressors.errors import UsageError, refuse_lone_surrogates, shorten
from compressors.registry import conform
from compressors.setting_fields import check_bounds, collect_settings

OPENING, CLOSING = "[{(", "]})"
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,300}")  # with more digits it is infinity, as any float beyond 1e308
WITH_EXPONENT = re.compile(r"[+-]?\d+[eE]\+?\d+")  # 1e3

Axes = dict[str, list[str]]  # key -> its alternatives as text


def split_at_commas(text: str) -> list[str]:
    """`text` at its commas, but not inside brackets or quotes."""
    pieces: list[str] = []
    depth = 0
    quote = ""
    start = 0
    for position, sign in enumerate(text):
        if quote:
            # inside quotes nothing counts but their end
            if sign == quote:
                quote = ""
        elif sign in "\"'":
            quote = sign
        elif sign in OPENING:
            depth += 1
        elif sign in CLOSING:
            depth -= 1
        elif sign == "," and not depth:
            pieces.append(text[start:position])
            start = position + 1
    if quote:
        raise UsageError(f"{text}: a quote is not closed")
    if depth:
        raise UsageError(f"{text}: a bracket is not closed")
    pieces.append(text[start:])
    return [piece.strip() for piece in pieces]


def parse_settings(arguments: Sequence[str]) -> Axes:
    """KEY=VALUE arguments as key -> its alternatives, in the order given."""
    axes: Axes = {}
    for argument in arguments:
        key, equals, text = argument.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UsageError(
                f"'{argument}': expected key=value without spaces around =, such as seed=0,1,2 (--help lists "
                "the keys)"
            )
        if key in axes:
            raise UsageError(f"{key} is given twice; for both write {key}={','.join(axes[key])},{text}")
        refuse_lone_surrogates(argument, shorten(ascii(argument)))
        try:
            axes[key] = split_at_commas(text)
        except UsageError as error:
            raise UsageError(f"{key}={error}") from error
    return axes


def quote_text(text: str) -> str:
    """A text as one value of a setting, in quotes where a command line would read it as something else."""
    if text == text.strip() and not set(text) & {",", "'", '"', *OPENING, *CLOSING}:
        return text
    quote = "'" if '"' in text else '"'
    return f"{quote}{text.replace(quote, 2 * quote)}{quote}"


def unquote_text(text: str) -> str:
    """A value without the quotes around it, where it has some; inside them two are one, as in YAML."""
    for quote in "\"'":
        if len(text) > 1 and text.startswith(quote) and text.endswith(quote):
            return text[1:-1].replace(2 * quote, quote)
    return text


def join_settings(axes: Mapping[str, Sequence[str]]) -> list[str]:
    """The KEY=VALUE arguments that `parse_settings` would read as these axes."""
    return [f"{key}={','.join(texts)}" for key, texts in axes.items()]


def read_value(text: str, hint: Any, path: str) -> object:
    """`text` as the type `hint`: bool, int, float, str, Path, a Literal, or one of them or null."""
    origin = typing.get_origin(hint)
    options = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text == "null" and type(None) in options:
            return None
        # `int | None` says no more than `int` to what is not null
        hints = [option for option in options if option is not type(None)]
        if len(hints) == 1:
            return read_value(text, hints[0], path)
    if hint is str:
        return unquote_text(text)
    if hint is Path:
        return Path(unquote_text(text))
    try:
        value = read_plain_value(text)
    except ValueError as error:
        raise UsageError(f"{path}={shorten(text)}: too many digits") from error
    return conform(value, hint, path)


def read_plain_value(text: str) -> object:
    """A switch or a number where the text spells one, else the text."""
    if text in ("true", "false"):
        return text == "true"
    if WHOLE_NUMBER.fullmatch(text):
        return int(text)
    if WITH_EXPONENT.fullmatch(text):
        return read_exponent(text)
    try:
        return float(text)
    except ValueError:
        return text


def read_exponent(text: str) -> int | float:
    """1e3 is a whole number, to Python and YAML a float. Infinity where it is beyond a float."""
    value = float(text)
    return value if math.isinf(value) else int(value)


def require_single(path: str, texts: Sequence[str]) -> str:
    """The only alternative of a key that takes one; UsageError for several."""
    if len(texts) > 1:
        raise UsageError(f"{path}={','.join(texts)}: takes one value")
    return texts[0]


def take_options(axes: Axes, options: type) -> Any:
    """An instance of the dataclass `options`; its keys leave `axes`, what stays there belongs to others."""
    values: dict[str, object] = {}
    for path, item in collect_settings(options).items():
        if path not in axes:
            if item.rules.get("required"):
                raise UsageError(f"{path}= is missing: {item.help}")
            continue
        texts = axes.pop(path)
        if typing.get_origin(item.hint) is tuple:  # tuple[int, ...]: the only settings with several values
            hint = typing.get_args(item.hint)[0]
            several = tuple(read_value(text, hint, path) for text in texts)
            for value in several:
                check_bounds(path, value, item.rules)
            values[path] = several
            continue
        value = read_value(require_single(path, texts), item.hint, path)
        check_bounds(path, value, item.rules)
        values[path] = value
    return options(**values)
