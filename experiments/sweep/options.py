"""Where cells run and how many at once. Nothing of it is in a stage's key: launching never changes what a
result is called; what it may change is the last bits of one (see `threads`)."""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from compressors.errors import UsageError
from compressors.key_value import Axes, read_value, require_single, unquote_text
from compressors.registry import suggest
from compressors.setting_fields import Setting, check_bounds, collect_settings, setting
from experiments.config.overrides import parse_value
from experiments.registries import launchers

PLAIN_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")  # 0012 is the name of an account
IN_PROCESS_LAUNCHER = "local"  # the one that needs no launcher for a single worker; it has no parameters


@dataclass(frozen=True)
class LaunchOptions:
    """The options; on the command line `where` is `launch`, the others are `launch.NAME`."""

    where: str = setting(
        IN_PROCESS_LAUNCHER,
        "processes of this machine, or Slurm jobs through submitit",
        choices=launchers.names,
    )
    workers: int | Literal["auto"] | None = setting(
        None,
        "cells at once; 1: in this process; auto: one a GPU, else one a core; null: for the embedded LLM on "
        "the CPU one a core where that is sooner, else 1",
        low=1,
    )
    threads: int | None = setting(
        None, "of a worker; null: 1 on the CPU. The last bits of a result depend on it", low=1
    )
    parameters: dict[str, object] = field(default_factory=dict)  # the launcher's own, as launch.WHERE.KEY

    @property
    def in_process(self) -> bool:
        """Whether cells run one after another in the command's own process."""
        has_one_worker = self.workers in (None, 1)
        return self.where == IN_PROCESS_LAUNCHER and has_one_worker and self.threads is None


def name_launch_option(name: str) -> str:
    """What an option is called on the command line."""
    if name == "where":
        return "launch"
    return f"launch.{name}"


def take_launch_options(axes: Axes) -> LaunchOptions:
    """The launch options, taken out of the axes."""
    options = {name_launch_option(name): name for name in collect_settings(LaunchOptions)}
    values: dict[str, Any] = {}
    parameters: dict[str, dict[str, object]] = {}  # launcher -> its parameters
    launch_paths = [path for path in axes if path.partition(".")[0] == "launch"]
    for path in launch_paths:
        texts = axes.pop(path)
        launcher, parameter = split_parameter(path)
        if parameter:
            # one with commas is a single text: gres=gpu:1,nvme
            parameters.setdefault(launcher, {})[parameter] = read_parameter(",".join(texts), path)
            continue
        text = require_single(path, texts)
        if path not in options:
            paths = [*options, *(f"launch.{name}.KEY" for name in list_parameter_launchers())]
            raise UsageError(f"unknown setting '{path}'{suggest(path, paths)}")
        name = options[path]
        values[name] = read_launch_option(text, path, collect_settings(LaunchOptions)[name])
    where = values.get("where", IN_PROCESS_LAUNCHER)
    for launcher, theirs in parameters.items():
        if launcher != where:
            first = min(theirs)
            raise UsageError(f"launch.{launcher}.{first}={theirs[first]}: needs launch={launcher}")
    if where == "slurm" and values.get("workers") == "auto":
        raise UsageError("launch.workers=auto: with launch=slurm say how many jobs at once, launch.workers=8")
    return LaunchOptions(**values, parameters=parameters.get(where, {}))


def read_parameter(text: str, path: str) -> object:
    """A launcher's parameter: a switch or a whole number where it is spelled as one, a mapping or list in
    brackets, else text: 1:30:00."""
    if text in ("true", "false"):
        return text == "true"
    if PLAIN_NUMBER.fullmatch(text):
        return int(text)
    if text.startswith(("{", "[")):  # as submitit's additional_parameters
        return parse_value(text, path)
    return unquote_text(text)


def list_parameter_launchers() -> list[str]:
    """Launchers that take parameters of their own."""
    return [name for name in launchers.names() if name != IN_PROCESS_LAUNCHER]


def split_parameter(path: str) -> tuple[str, str]:
    """launch.slurm.partition as (slurm, partition); the second is empty where a path is no parameter."""
    launcher, _, parameter = path.removeprefix("launch.").partition(".")
    if launcher not in list_parameter_launchers():
        return launcher, ""
    return launcher, parameter


def read_launch_option(text: str, path: str, option: Setting) -> object:
    """One of the options that are not a launcher's own. UsageError for a value that it cannot have."""
    if text == "auto" and path == "launch.workers":
        return text
    # of "int or auto" the int is meant here: an error for launch.workers=two says that
    hint = int | None if path == "launch.workers" else option.hint
    value = read_value(text, hint, path)
    check_bounds(path, value, option.rules)
    return value
