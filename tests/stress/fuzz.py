"""Odd input to every command, file format and constructor.

    PYTHONPATH=.:tests/helpers python tests/stress/fuzz.py inputs=10000

A command ends with exit code 0, or with 2 and one line that begins with "error:" and quotes at most 200
characters of the input; a constructor raises a ValueError that names the argument, or makes a part that
works. Anything else is a failure: a traceback, a hang over 20 seconds, a process that dies.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fuzz_commands
import fuzz_files
import fuzz_parts
from huggingface_hub import constants as hub_constants
from stock import Stock, make_stock
from trials import Kind, TrialOptions, run_program

from compressors.command_line import Command, CommandLine
from compressors.setting_fields import setting
from experiments.models.build import silence_libraries


@dataclass(frozen=True)
class FuzzOptions(TrialOptions):
    """How long, and which inputs."""

    inputs: int = setting(1000, "in all", low=1)
    kind: str | None = setting(None, "one kind of input by a part of its name")


COMMAND = Command("python tests/stress/fuzz.py [KEY=VALUE ...]", __doc__ or "", FuzzOptions)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code is 1 for a failure."""
    return COMMAND.run(run_fuzz, arguments)


def run_fuzz(line: CommandLine) -> int:
    """Try inputs and say which failed."""
    options: FuzzOptions = line.options
    # names of models that are not there are not looked up; here the variable has been read already
    hub_constants.HF_HUB_OFFLINE = True
    os.environ["HF_HUB_OFFLINE"] = "1"
    silence_libraries()
    with tempfile.TemporaryDirectory(prefix="slothkit-fuzz-") as place:
        kinds = make_kinds(make_stock(Path(place)))
        if options.kind is not None:
            kinds = {name: kind for name, kind in kinds.items() if options.kind in name}
        return run_program(kinds, options, options.inputs)


def make_kinds(stock: Stock) -> dict[str, Kind]:
    """All kinds of input."""
    return {
        **fuzz_commands.make_kinds(stock),
        **fuzz_files.make_kinds(stock),
        **fuzz_parts.make_kinds(),
    }


if __name__ == "__main__":
    sys.exit(main())
