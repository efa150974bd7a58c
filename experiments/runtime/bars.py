"""What a run tells on a terminal: bars for cells and steps."""

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

from experiments.runtime.progress import PlainReporter, Reporter, format_fields


class RichReporter(Reporter):
    """Bars for cells and for the steps of the stage under way; with several workers, a bar each."""

    def __init__(self, console: Console):
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            # the bars go when the run ends; the table that follows says what came of it
            transient=True,
        )
        self._cells = self.progress.add_task("cells", total=None, words="")
        self._steps = StepBar(self.progress)
        self._lanes: dict[int, StepBar] = {}  # by worker
        self._number = -1  # of the cell under way, from 0

    def __enter__(self) -> "RichReporter":
        self.progress.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.progress.stop()

    def announce_cells(self, total: int) -> None:
        self.progress.update(self._cells, total=total)

    def begin_cell(self, label: str) -> None:
        self._number += 1
        self.progress.update(self._cells, completed=self._number, words=escape(label))
        self._steps.hide_bar()

    def finish_cell(self, _label: str) -> None:
        self.progress.update(self._cells, advance=1)

    def begin_stage(self, label: str) -> None:
        self._steps.begin_stage(label)

    def announce_steps(self, total: int, done: int = 0) -> None:
        self._steps.announce_steps(total, done)

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self._steps.advance_steps(n, **fields)

    def write_note(self, text: str) -> None:
        self._steps.write_note(text)

    def open_lane(self, number: int, label: str) -> "StepBar":
        if number not in self._lanes:
            self._lanes[number] = StepBar(self.progress)
        bar = self._lanes[number]
        bar.prefix = f"({number}) {label}: "
        bar.begin_stage("")
        return bar


class StepBar(Reporter):
    """The steps of one stage at a time."""

    def __init__(self, progress: Progress):
        self.progress = progress
        self.prefix = ""
        self._task = progress.add_task("", total=None, words="", visible=False)

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.hide_bar()

    def hide_bar(self) -> None:
        """Nothing is under way."""
        self.progress.update(self._task, visible=False)

    def begin_stage(self, label: str) -> None:
        # `reset` and not `update`: the time of the stage before must not count
        description = escape(f"  {self.prefix}{label}")
        self.progress.reset(self._task, total=None, description=description, words="", visible=True)

    def announce_steps(self, total: int, done: int = 0) -> None:
        self.progress.reset(self._task, total=total, completed=done)

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        if fields:
            self.progress.update(self._task, advance=n, words=escape(format_fields(fields)))
        else:  # what was shown before stays
            self.progress.update(self._task, advance=n)

    def write_note(self, text: str) -> None:
        self.progress.console.print(f"{self.prefix}{text}", markup=False, highlight=False, soft_wrap=True)


def create_reporter(console: Console) -> Reporter:
    """Bars if `console` is a terminal, lines otherwise."""
    return RichReporter(console) if console.is_terminal else PlainReporter(console)
