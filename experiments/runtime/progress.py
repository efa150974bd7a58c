"""What a run tells while it works: a line a stage for logs, nothing by default; `bars.py` is for screens."""

import time
from types import TracebackType

from rich.console import Console


class Reporter:
    """Says nothing. Every stage gets a reporter and may call these at any time, from any thread."""

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def announce_cells(self, total: int) -> None:
        """How many cells there are."""

    def begin_cell(self, label: str) -> None:
        """A cell begins."""

    def begin_stage(self, label: str) -> None:
        """A stage of it begins."""

    def announce_steps(self, total: int, done: int = 0) -> None:
        """How many steps the stage has, and how many of them an earlier run did."""

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        """`n` more steps are done; `fields` (loss=...) are shown beside the bar."""

    def write_note(self, text: str) -> None:
        """One line to keep."""

    def write_warning(self, text: str) -> None:
        """One line that matters even where nobody looks at the details."""
        self.write_note(f"warning: {text}")

    def finish_cell(self, label: str) -> None:
        """A cell is done, where several are under way."""

    def open_lane(self, number: int, label: str) -> "Reporter":  # noqa: ARG002
        """The reporter of a worker that begins `label`; workers count from 0."""
        return Reporter()


class StepCounter(Reporter):
    """Passes everything on; remembers how many steps there are and whether any was done."""

    def __init__(self, report: Reporter):
        self.report = report
        self.total: int | None = None
        self.advanced = False

    def begin_stage(self, label: str) -> None:
        self.report.begin_stage(label)

    def announce_steps(self, total: int, done: int = 0) -> None:
        self.total = total
        self.report.announce_steps(total, done)

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self.advanced = True
        self.report.advance_steps(n, **fields)

    def write_note(self, text: str) -> None:
        self.report.write_note(text)

    def write_warning(self, text: str) -> None:
        self.report.write_warning(text)


def format_fields(fields: dict[str, object]) -> str:
    """loss=1.2345 -> "loss 1.234"."""
    words: list[str] = []
    for name, value in fields.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        words.append(f"{name} {value}")
    return "  ".join(words)


class PlainReporter(Reporter):
    """A line when a stage begins and one when it ends: for log files."""

    def __init__(self, console: Console, prefix: str = "  "):
        self.console = console
        self.prefix = prefix
        self._number = 0  # of the cell under way, from 1
        self._total = 0
        self._stage = ""
        self._started = 0.0
        self._done = 0  # steps of the stage
        self._fields: dict[str, object] = {}

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:  # a stage that failed has not ended
            self._close_stage()

    def announce_cells(self, total: int) -> None:
        self._total = total

    def begin_cell(self, label: str) -> None:
        self._close_stage()
        self._number += 1
        self._print_line(f"[{self._number}/{self._total}] {label}")

    def begin_stage(self, label: str) -> None:
        self._close_stage()
        self._stage = label
        self._started = time.monotonic()
        self._done = 0
        self._fields = {}
        self._print_line(f"{self.prefix}{label} ...")

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self._done += n
        self._fields = self._fields | fields

    def write_note(self, text: str) -> None:
        self._print_line(f"{self.prefix}{text}")

    def finish_cell(self, label: str) -> None:
        self._number += 1
        self._print_line(f"[{self._number}/{self._total}] {label}")

    def open_lane(self, number: int, label: str) -> "PlainReporter":
        return PlainReporter(self.console, f"  ({number}) {label}: ")

    def _close_stage(self) -> None:
        """The line at the end of a stage, if one is under way."""
        if self._stage:
            duration = f"{time.monotonic() - self._started:.0f} s"
            if self._done:
                duration = f"{self._done} steps, {duration}"
            line = f"{self.prefix}{self._stage}: {duration}  {format_fields(self._fields)}"
            self._print_line(line.rstrip())
        self._stage = ""

    def _print_line(self, text: str) -> None:
        # as it stands: names of cells have brackets, and a log file has no width
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)
