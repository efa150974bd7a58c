"""What a result came about by, beside its settings: the command, the commits of the code, the device.

It stands in files beside results and is in no key: the same settings are the same result, whoever ran them.
"""

import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from experiments.runtime.processor import read_processor_name

# by the environment, which workers have from the process that starts them, Slurm's too
COMMAND_VARIABLE = "SLOTHKIT_COMMAND"
CODE_FOLDER = Path(__file__).parents[2]
GIT_SECONDS = 10.0  # a repository on a slow disk is not waited for longer


def declare_command(words: str) -> None:
    """Say what was typed, for all that this process and its workers compute from now on."""
    os.environ[COMMAND_VARIABLE] = words


def read_command() -> str | None:
    """What was typed; None where nobody has said it."""
    return os.environ.get(COMMAND_VARIABLE)


def describe_run(accelerator: str, gpus: Sequence[int] | None) -> dict[str, Any]:
    """How this process computes: `command` (None where nobody has said it), `commits` by folder of code,
    `device` and `python`. `accelerator`: where its models run, in the words of trainer.accelerator; `gpus`:
    which of them it takes where these are GPUs, None: all."""
    return {
        "command": read_command(),
        "commits": dict(find_commits()),
        "device": describe_device(accelerator, gpus),
        "python": platform.python_version(),
    }


@cache  # of one process: what it has imported stays what it was
def find_commits() -> tuple[tuple[str, str], ...]:
    """(what, commit) of this project's code and of the folder that the command was typed in, where they are
    git repositories; "+ changes" where tracked files differ from it."""
    commits: list[tuple[str, str]] = []
    for what, folder in (("slothkit", CODE_FOLDER), ("here", Path.cwd())):
        # installed, it may lie in the repository of somebody else
        if what == "slothkit" and ask_git(folder, "ls-files", "--error-unmatch", "slothkit.py") is None:
            continue
        commit = read_commit(folder)
        if commit and commit not in [earlier for _, earlier in commits]:
            commits.append((what, commit))
    return tuple(commits)


def read_commit(folder: Path) -> str:
    """The commit that is checked out in a folder; nothing where it is no repository or git is missing."""
    commit = ask_git(folder, "rev-parse", "HEAD")
    if not commit:
        return ""
    changes = ask_git(folder, "status", "--porcelain", "--untracked-files=no")
    if changes is None:
        return commit
    return f"{commit} + changes" if changes else commit


def ask_git(folder: Path, *words: str) -> str | None:
    """What git answers in a folder; None where it does not."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def describe_device(accelerator: str, gpus: Sequence[int] | None) -> str:
    """The GPUs that models of this process run on, else the processor and the threads that torch takes."""
    torch = sys.modules.get("torch")  # what computes with it has imported it
    if torch is None:
        return read_processor_name()
    if accelerator != "cpu" and torch.cuda.is_available():
        if gpus is None:
            gpus = range(torch.cuda.device_count())
        counts = Counter(torch.cuda.get_device_name(number) for number in gpus)
        return ", ".join(f"{count} x {name}" if count > 1 else name for name, count in counts.items())
    return f"{read_processor_name()}, {torch.get_num_threads()} threads"
