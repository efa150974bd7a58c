"""What a run tells while it works: bars on a terminal, a line a stage elsewhere, nothing by default."""
import time
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter:
    """Says nothing. Every stage gets a reporter and may call these at any time, from any thread."""

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass

    def cells(self, total: int) -> None:
        """How many cells there are."""

    def cell(self, label: str) -> None:
        """A cell begins."""

    def stage(self, label: str) -> None:
        """A stage of it begins."""

    def steps(self, total: int, done: int = 0) -> None:
        """How many steps the stage has, and how many of them an earlier run did."""

    def advance(self, n: int = 1, **fields: object) -> None:
        """`n` more steps are done; `fields` (loss=...) are shown beside the bar."""

    def note(self, text: str) -> None:
        """One line to keep."""


def words(fields: dict[str, object]) -> str:
    """loss=1.2345 -> "loss 1.234"."""
    return "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())


class PlainReporter(Reporter):
    """A line when a stage begins and one when it ends: for log files."""

    def __init__(self, console: Console):
        self.console = console
        self._number, self._total, self._stage = 0, 0, ""
        self._started, self._done, self._fields = 0.0, 0, {}

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self._close()

    def cells(self, total: int) -> None:
        self._total = total

    def cell(self, label: str) -> None:
        self._close()
        self._number += 1
        self._line(f"[{self._number}/{self._total}] {label}")

    def stage(self, label: str) -> None:
        self._close()
        self._stage, self._started, self._done, self._fields = label, time.monotonic(), 0, {}
        self._line(f"  {label} ...")

    def advance(self, n: int = 1, **fields: object) -> None:
        self._done += n
        self._fields = self._fields | fields

    def note(self, text: str) -> None:
        self._line(f"  {text}")

    def _close(self) -> None:
        if self._stage:
            took = f"{self._done} steps, {time.monotonic() - self._started:.0f} s"
            self._line(f"  {self._stage}: {took}  {words(self._fields)}".rstrip())
        self._stage = ""

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class RichReporter(Reporter):
    """Bars for cells and for the steps of the stage under way."""

    def __init__(self, console: Console):
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[words]}"), console=console, transient=True,
        )
        self._cells = self.progress.add_task("cells", total=None, words="")
        self._steps = self.progress.add_task("", total=None, words="", visible=False)
        self._number = -1

    def __enter__(self) -> "RichReporter":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def cells(self, total: int) -> None:
        self.progress.update(self._cells, total=total)

    def cell(self, label: str) -> None:
        self._number += 1
        self.progress.update(self._cells, completed=self._number, words=escape(label))
        self.progress.update(self._steps, visible=False)

    def stage(self, label: str) -> None:
        self.progress.reset(self._steps, total=None, description=escape(f"  {label}"), words="", visible=True)

    def steps(self, total: int, done: int = 0) -> None:
        self.progress.reset(self._steps, total=total, completed=done)

    def advance(self, n: int = 1, **fields: object) -> None:
        shown = {"words": escape(words(fields))} if fields else {}
        self.progress.update(self._steps, advance=n, **shown)

    def note(self, text: str) -> None:
        self.progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


def reporter(console: Console) -> Reporter:
    """Bars if `console` is a terminal, lines otherwise."""
    return RichReporter(console) if console.is_terminal else PlainReporter(console)
