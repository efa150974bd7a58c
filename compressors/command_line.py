"""One grammar for every command of the house.

    python -m experiments.chat picture.png "what is it ?" max_new_tokens=64

Words are what a command acts on; settings are KEY=VALUE, with commas between several values; `--help` and
`--version` are flags. A command declares its settings as the fields of a dataclass, each with a default, a
meaning and bounds, and nothing else: the help text, the types and the errors come from there.

It stands on the lowest floor because commands of all floors use it, so it needs the standard library only.
"""

import dataclasses
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from compressors.errors import LONGEST_ECHO, UsageError, refuse_lone_surrogates, shorten
from compressors.help_layout import find_width, lay_out_help
from compressors.registry import conform, suggest
from compressors.spelling import spell_commands

OPENING, CLOSING = "[{(", "]})"
WHOLE_NUMBER = re.compile(r"[+-]?\d{1,300}")  # with more digits it is infinity, as any float beyond 1e308
WITH_EXPONENT = re.compile(r"[+-]?\d+[eE]\+?\d+")  # 1e3
LONG_WORD = re.compile(rf"\S{{{LONGEST_ECHO + 1},}}")
SETTING = re.compile(r"[A-Za-z_][\w.]*=\S*")
BOUNDS: tuple[tuple[str, Callable[[Any, Any], bool], str], ...] = (
    ("low", operator.ge, "at least"),
    ("above", operator.gt, "more than"),
    ("below", operator.lt, "less than"),
)

Axes = dict[str, list[str]]  # key -> its alternatives as text


# ---- declaring settings ----


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


# ---- reading a command line ----


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
            raise UsageError(f"'{argument}': expected key=value, such as seed=0,1,2 (--help lists the keys)")
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
        return text
    if hint is Path:
        return Path(text)
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


class CommandLine(NamedTuple):
    """A command line that has been read. `overrides` are the settings that are not the command's own;
    `arguments` is all of it as it was typed."""

    words: list[str]
    options: Any
    overrides: Axes
    flags: frozenset[str]
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """What a command's line may say, and how the command ends.

    usage           what stands behind "Usage:"
    description     what it does, for --help
    options         dataclass of its own settings
    words           how many words it acts on, at least and at most; None: any number
    overrides       other settings are handed on, such as those of a cell
    flags           besides --help and --version
    elsewhere       what to do when a file cannot be written
    interrupted     what Ctrl-C is answered with
    """

    usage: str
    description: str
    options: type
    words: tuple[int, int | None] = (0, 0)
    overrides: bool = False
    flags: tuple[str, ...] = ()
    elsewhere: str = "write to another place"
    interrupted: str = "interrupted"

    def run(self, body: Callable[[CommandLine], int], arguments: Sequence[str] | None = None) -> int:
        """The command's exit code: what `body` returns; 2 for bad input or a full disk; 130 for Ctrl-C."""
        line = sys.argv[1:] if arguments is None else list(arguments)
        if "-h" in line or "--help" in line:
            sys.stdout.write(lay_out_help(spell_commands(self.help()), find_width()))
            return 0
        if "--version" in line:
            sys.stdout.write(f"slothkit {installed_version()}\n")
            return 0
        return run_guarded(lambda: body(self.read(line)), self.elsewhere, self.interrupted)

    def read(self, arguments: Sequence[str]) -> CommandLine:
        """Words, settings and flags in any order. UsageError for what the command does not know."""
        words: list[str] = []
        settings: list[str] = []
        flags: set[str] = set()
        for position, argument in enumerate(arguments):
            if argument in self.flags:
                flags.add(argument)
            # a file may have a name that begins like a flag
            elif argument.startswith("--") and not Path(argument).exists():
                following = arguments[position + 1 : position + 2]  # its value, if the line goes on
                raise UsageError(self.explain_flag(argument, "".join(following)))
            elif self.is_setting(argument):
                settings.append(argument)
            else:
                words.append(argument)
        self.check_words(words)
        axes = parse_settings(settings)
        options = take_options(axes, self.options)
        if axes and not self.overrides:
            path = next(iter(axes))
            raise UsageError(
                f"{path}={','.join(axes[path])}: no setting of this command"
                f"{suggest(path, collect_settings(self.options))}"
            )
        return CommandLine(words, options, axes, frozenset(flags), tuple(arguments))

    def is_setting(self, argument: str) -> bool:
        """Whether an argument is KEY=VALUE; a question or a file may have an equals sign too."""
        if self.words[1] == 0:
            return True
        if argument.partition("=")[0] in collect_settings(self.options) and "=" in argument:
            return True
        return SETTING.fullmatch(argument) is not None and not Path(argument).exists()

    def check_words(self, words: list[str]) -> None:
        """UsageError for too few or too many words."""
        least, most = self.words
        if len(words) >= least and (most is None or len(words) <= most):
            return
        description = "nothing"
        if words:
            description = f"{len(words)} words ({', '.join(words)})"
        raise UsageError(f"expected {self.usage}, found {description} (--help shows more)")

    def explain_flag(self, flag: str, following: str) -> str:
        """What to write instead of a flag."""
        name, equals, value = flag.lstrip("-").partition("=")
        settings = collect_settings(self.options)
        path = name.replace("-", "_")
        for candidate, item in settings.items():
            if name in item.rules.get("was", ()):
                path = candidate
        if path not in settings and self.overrides:
            # it may be meant for those to whom other settings are handed on
            return f"{flag}: no such flag; settings are spelled KEY=VALUE (--help shows what there is)"
        if path not in settings:
            return f"{flag}: no setting of this command{suggest(path, settings)}"
        if settings[path].hint is bool:
            return f"{flag}: settings are spelled KEY=VALUE; write {path}=true"
        text = value if equals else following
        return f"{flag}: settings are spelled KEY=VALUE; write {path}={text or '...'}"

    def help(self) -> str:
        """The text of --help."""
        lines = [f"Usage: {self.usage}", "", self.description.strip(), ""]
        settings = collect_settings(self.options)
        defaults = [describe_default(path, item) for path, item in settings.items()]
        width = max(map(len, defaults), default=0)
        for default, item in zip(defaults, settings.values()):
            lines.append(f"  {default:{width}}  {item.help}{describe_rules(item)}")
        if settings:
            lines.append("")
        lines += ["  --help  --version", ""]
        return "\n".join(lines)


def describe_default(path: str, item: Setting) -> str:
    """KEY=DEFAULT as it would be typed."""
    if item.rules.get("required"):
        return f"{path}=..."
    if isinstance(item.default, tuple):  # several values are typed without brackets
        return f"{path}={','.join(map(format_value, item.default))}"
    return f"{path}={format_value(item.default)}"


def describe_rules(item: Setting) -> str:
    """A setting's choices, in brackets."""
    choices = item.choices  # may be listed when asked for
    if not choices:
        return ""
    return f" ({join_choices(choices)})"


def installed_version() -> str:
    """The version of this project, as it is installed."""
    try:
        return version("slothkit")
    except PackageNotFoundError:
        return "(not installed)"


# ---- ending in one line ----


def run_guarded(body: Callable[[], int], elsewhere: str, interrupted: str = "interrupted") -> int:
    """What `body` returns; 2 for bad input or a full disk (`elsewhere`: how to write to another place), 130
    for Ctrl-C. Each of them is one line on standard error."""
    try:
        return body()
    except UsageError as error:
        return report_error(str(error), 2)
    except OSError as error:
        return report_error(f"{describe_os_error(error)}; free space there or {elsewhere}", 2)
    except KeyboardInterrupt:
        return report_error(interrupted, 130)


def describe_os_error(error: OSError) -> str:
    """Which file, and what is wrong with it."""
    # an error that a library raised itself may have a message alone, of several lines
    reason = error.strerror or str(error).partition("\n")[0]
    if error.filename:
        return f"{error.filename}: {reason}"
    return reason


def report_error(text: str, exit_code: int) -> int:
    """Write one line on standard error, with no more of a word than helps; the exit code."""
    line = " ".join(spell_commands(text).split())
    line = LONG_WORD.sub(lambda word: shorten(word[0]), line)
    sys.stderr.write(f"error: {line}\n")
    return exit_code
