"""What a shell may complete a line of `slothkit` with, read from the settings themselves.

The shell's script calls `slothkit complete LINE`, LINE up to the cursor, and gets a candidate a line for its
last word.
"""

import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from typing import Any, Literal, get_args, get_origin

from compressors.command_line import Command
from compressors.errors import UsageError
from compressors.registry import suggest
from compressors.setting_fields import collect_settings, format_value, list_choices

SCRIPTS = {
    "bash": """\
_slothkit() {
    local word IFS=$'\\n'
    COMPREPLY=($(slothkit complete "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    # bash takes = for the end of a word: what stands before it must not come again
    word="${COMP_LINE:0:COMP_POINT}"
    word="${word##* }"
    if [[ "$COMP_WORDBREAKS" == *=* && "$word" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${word%%=*}="}")
    fi
}
complete -o nospace -o default -F _slothkit slothkit
""",
    "zsh": """\
_slothkit() {
    local -a candidates
    # of this command alone, not of the line, which may have others before it
    candidates=(${(f)"$(slothkit complete "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    if (( $#candidates )); then
        compadd -Q -S '' -- $candidates
    else
        compset -P '*[=,\\[]'  # a file's name stands behind these
        _files
    fi
}
compdef _slothkit slothkit
""",
}
FLAGS = ("--help", "--version")


def print_script(arguments: Sequence[str]) -> int:
    """The script of a shell. UsageError for one that we have none for."""
    if len(arguments) != 1 or arguments[0] not in SCRIPTS:
        word = " ".join(arguments)
        raise UsageError(f"slothkit completion {word}: expected one shell{suggest(word, SCRIPTS)}")
    sys.stdout.write(SCRIPTS[arguments[0]])
    return 0


def print_completions(
    arguments: Sequence[str], commands: Iterable[str], find_module: Callable[[str], str | None]
) -> int:
    """A candidate a line for the last word of a line; none for a line that nothing is known of."""
    line = " ".join(arguments)
    words = split_line(line)
    if len(words) <= 2:
        candidates = [f"{name} " for name in [*commands, *FLAGS]]
    elif words[1] == "completion":
        candidates = list(SCRIPTS)
    else:
        module = find_module(words[1])
        candidates = list_candidates(import_module(module).COMMAND, words[-1]) if module else []
    last_word = words[-1]
    for candidate in sorted(set(candidates)):
        if candidate.startswith(last_word):
            sys.stdout.write(f"{candidate}\n")
    return 0


def split_line(line: str) -> list[str]:
    """The words of a line; the last one is empty where the line ends with a space."""
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        words = line.split()
    if line.endswith(" ") or not words:
        words.append("")
    return words


def list_candidates(command: Command, word: str) -> list[str]:
    """What a word of a command's line may become, its value where it has an equals sign."""
    key, equals, text = word.partition("=")
    if equals:
        before, comma, _ = text.rpartition(",")
        return [f"{key}={before}{comma}{value}" for value in list_values(command, key, text)]
    keys = [f"{path}=" for path in collect_settings(command.options)]
    if command.overrides:
        keys += list_override_keys(word)
    return [*keys, *command.flags, *FLAGS]


def list_override_keys(word: str) -> list[str]:
    """Settings of cells and launchers, and knobs of the part that a word begins with."""
    from experiments.config import signatures
    from experiments.config.schema import Config
    from experiments.sweep.options import LaunchOptions, name_launch_option
    from experiments.sweep.request import REQUEST_SETTINGS

    keys = [f"{path}=" for path in (*collect_settings(Config), *REQUEST_SETTINGS)]
    keys += [f"{name_launch_option(name)}=" for name in collect_settings(LaunchOptions)]
    part = word.partition(".")[0]
    for registry in signatures.registries():
        if "." not in word:
            keys += [f"{name}." for name in registry.names() if registry.find_knobs(name)]
        else:
            keys += [f"{part}.{knob}=" for knob in registry.find_knobs(part)]
    return keys


def list_part_names(key: str, text: str) -> list[str]:
    """The names that a setting of cells takes, where it takes names; `text`: what is typed of its value."""
    from experiments.config import signatures, table_files
    from experiments.config.presets import list_presets
    from experiments.config.schema import BLIND_COMPRESSOR

    if key == "compressor":
        host, plus, _ = text.rpartition(",")[2].partition("+")
        if plus:
            return [f"{host}+{name}" for name in signatures.query_modules().names()]
        return [*signatures.compressors().names(), BLIND_COMPRESSOR]
    if key == "projector":
        return ["auto", *signatures.projectors().names()]
    if key == "prune":
        return ["null", *signatures.pruners().names()]
    if key == "preset":
        return list_presets()
    if key == "table":
        return [*(table.name for table in table_files.list_named_tables()), "all"]
    return []


def list_hint_values(hint: Any) -> list[str]:
    """The words of a type that takes certain words."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return list(map(format_value, get_args(hint)))
    return []


def list_knob_values(key: str) -> list[str]:
    """The words that a knob takes, where it takes certain words."""
    from experiments.config import signatures

    part, _, knob = key.partition(".")
    for registry in signatures.registries():
        knobs = registry.find_knobs(part)  # whoever completes a line cannot be told of a broken one
        if knob in knobs:
            return list_hint_values(knobs[knob].annotation)
    return []


def list_values(command: Command, key: str, text: str) -> list[str]:
    """What a setting may be; nothing where it is free, or of a file's name."""
    settings: dict[str, Any] = dict(collect_settings(command.options))
    if command.overrides:
        from experiments.config.schema import Config
        from experiments.sweep.options import LaunchOptions, name_launch_option

        settings = {**collect_settings(Config), **settings}
        names = list_part_names(key, text) or list_knob_values(key)
        if names:
            return names
        for name, item in collect_settings(LaunchOptions).items():
            settings.setdefault(name_launch_option(name), item)
        if key == "blind":
            return list_hint_values(bool)
    if key not in settings:
        return []
    choices = map(format_value, list_choices(settings[key].rules))
    return list_hint_values(settings[key].hint) or list(choices)
