"""One grammar for every command of the house.

    python -m experiments.chat picture.png "what is it ?" max_new_tokens=64

Words are what a command acts on; settings are KEY=VALUE, with commas between several values; `--help` and
`--version` are flags. A command declares its settings as the fields of a dataclass (`setting_fields.py`).

It stands on the lowest floor because commands of all floors use it, so it needs the standard library only.
"""

import errno
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from compressors.errors import LONGEST_ECHO, UsageError, shorten
from compressors.help_layout import find_width, lay_out_help
from compressors.key_value import Axes, parse_settings, take_options
from compressors.registry import suggest
from compressors.setting_fields import Setting, collect_settings, format_value, join_choices
from compressors.spelling import spell_commands

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
LONG_WORD = re.compile(rf"\S{{{LONGEST_ECHO + 1},}}")
SETTING = re.compile(r"[A-Za-z_][\w.]*=\S*")


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
        advice = f"free space there or {elsewhere}" if error.errno in FULL_DISK else elsewhere
        return report_error(f"{describe_os_error(error)}; {advice}", 2)
    except KeyboardInterrupt:
        return report_error(interrupted, 130)


def describe_os_error(error: OSError) -> str:
    """Which file, and what is wrong with it."""
    # an error that a library raised itself may have a message alone, of several lines
    reason = error.strerror or str(error).partition("\n")[0]
    if isinstance(error, FileExistsError):  # where a folder would have been made
        reason = "a file, not a folder"
    if error.filename:
        return f"{error.filename}: {reason}"
    return reason


def report_error(text: str, exit_code: int) -> int:
    """Write one line on standard error, with no more of a word than helps; the exit code."""
    line = " ".join(spell_commands(text).split())
    line = LONG_WORD.sub(lambda word: shorten(word[0]), line)
    sys.stderr.write(f"error: {line}\n")
    return exit_code
