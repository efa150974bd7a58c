"""What another process tells while it works, on its way to the reporter of the process that watches.

worker: RelayReporter(pipe.send)  ->  messages  ->  sweep: play_message(pipe.recv(), lane)
"""

from collections.abc import Callable
from dataclasses import dataclass

from experiments.runtime.progress import Reporter


# One message for each method of a Reporter that a stage calls. They are pickled on their way.
@dataclass(frozen=True)
class StageBegun:
    label: str


@dataclass(frozen=True)
class StepsAnnounced:
    total: int
    done: int


@dataclass(frozen=True)
class StepsAdvanced:
    count: int
    fields: dict[str, object]


@dataclass(frozen=True)
class NoteWritten:
    text: str


@dataclass(frozen=True)
class WarningWritten:
    text: str


ReporterMessage = StageBegun | StepsAnnounced | StepsAdvanced | NoteWritten | WarningWritten


class RelayReporter(Reporter):
    """Sends what it is told as messages. `send` is a pipe's `send` or a queue's `put`."""

    def __init__(self, send: Callable[[ReporterMessage], object]):
        self.send = send

    def begin_stage(self, label: str) -> None:
        self.send(StageBegun(label))

    def announce_steps(self, total: int, done: int = 0) -> None:
        self.send(StepsAnnounced(total, done))

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self.send(StepsAdvanced(n, fields))

    def write_note(self, text: str) -> None:
        self.send(NoteWritten(text))

    def write_warning(self, text: str) -> None:
        self.send(WarningWritten(text))


def play_message(message: ReporterMessage, report: Reporter) -> None:
    """Tell `report` what a message from another process says. TypeError for anything that is no message."""
    match message:
        case StageBegun(label):
            report.begin_stage(label)
        case StepsAnnounced(total, done):
            report.announce_steps(total, done)
        case StepsAdvanced(count, fields):
            report.advance_steps(count, **fields)
        case NoteWritten(text):
            report.write_note(text)
        case WarningWritten(text):
            report.write_warning(text)
        case _:
            raise TypeError(f"{message!r} is no message of a reporter")
