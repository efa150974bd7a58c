"""Grids in a terminal."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from ablations.claims.verdicts import FAILS, HOLDS, TIE
from ablations.writing.grids.scores_grid import EFFICIENCY_COLUMNS
from ablations.writing.grids.word_grid import WordGrid, group_by_block, holds_words, spell_line
from experiments.runtime.text_tables import (
    measure_whole_columns,
    split_columns,
)

EFFICIENCY_HEADINGS = [column.heading for column in EFFICIENCY_COLUMNS]
LEAST_SENTENCE = 16  # columns that a sentence may be folded to
LEADING_COLUMNS = 3  # of a grid of scores, before the families: label, seeds, overall
VERDICT_STYLES = {HOLDS: "green", FAILS: "red", TIE: "blue"}


def render_screen_tables(grid: WordGrid, width: int) -> list[RichTable]:
    """For a terminal. Scores too wide for it get their families in a table of their own, and as many tables
    as they take; of sentences too wide for columns each is a line of its own."""
    main_columns = []
    family_columns = [0]  # the label in both
    for column, heading in enumerate(grid.header):
        if column < LEADING_COLUMNS or heading in EFFICIENCY_HEADINGS:
            main_columns.append(column)
        else:
            family_columns.append(column)
    if "overall" not in grid.header:
        widths = measure_columns(grid, width)
        if len(split_columns(widths, width)) > 1:
            return [render_screen_records(grid)]
        return [render_screen_table(grid, width)]
    halves = [main_columns, family_columns]
    if len(family_columns) == 1 or measure_width(grid) <= width:
        halves = [list(range(len(grid.header)))]
    parts = []
    for half in halves:
        half_grid = select_grid_columns(grid, half)
        for columns in split_columns(measure_columns(half_grid, width), width):
            parts.append(select_grid_columns(half_grid, columns))
    parts[-1].notes = grid.notes
    return [render_screen_table(part, width) for part in parts]


def measure_columns(grid: WordGrid, width: int) -> list[int]:
    """Letters that each column takes at least: numbers and labels whole, sentences as far as they fold."""
    widths = []
    for column, heading in enumerate(grid.header):
        longest = measure_longest(grid, column)
        if longest > max(LEAST_SENTENCE, width // 8):
            longest = LEAST_SENTENCE
        widths.append(max(longest, *map(len, heading.split()), 0))
    return widths


def measure_width(grid: WordGrid) -> int:
    """Letters that a grid takes without folding."""
    return sum(measure_whole_columns([grid.header, *(line for _, line in grid.lines)]))


def measure_longest(grid: WordGrid, column: int) -> int:
    """Letters of a column's longest words below its heading."""
    return max((len(line[column]) for _, line in grid.lines), default=0)


def select_grid_columns(grid: WordGrid, columns: Sequence[int]) -> WordGrid:
    """Some columns of a grid, without its notes."""
    header = [grid.header[column] for column in columns]
    lines = []
    bold = set()
    for number, (block, line) in enumerate(grid.lines):
        cells = [line[column] for column in columns]
        lines.append((block, cells))
        for place, column in enumerate(columns):
            if (number, column) in grid.bold:
                bold.add((number, place))
    return WordGrid(grid.title, header, lines, [], bold)


def render_screen_table(grid: WordGrid, width: int) -> RichTable:
    """What is too wide folds, short columns do not."""
    table = RichTable(
        title=escape(grid.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=escape("\n".join(grid.notes)) or None,
        caption_justify="left",
    )
    fits = measure_width(grid) < width
    for column, least_width in enumerate(measure_columns(grid, width)):
        is_sentence = measure_longest(grid, column) > least_width
        table.add_column(
            escape(grid.header[column]),
            justify="left" if holds_words(grid, column) else "right",
            overflow="fold",
            # rich would take more from one column than from the others, and cut the last off
            width=None if fits or is_sentence else least_width,
            min_width=least_width,
        )
    for title, lines in group_by_block(grid):
        if title:
            table.add_row(f"[italic]{escape(title)}[/]")
        for number, _ in lines:
            table.add_row(*spell_line(grid, number, style_verdict, "[bold]{}[/]".format))
    return table


def render_screen_records(grid: WordGrid) -> RichTable:
    """Each line of a grid below the other, a heading and its words a line."""
    table = RichTable(
        title=escape(grid.title),
        title_justify="left",
        caption=escape("\n".join(grid.notes)) or None,
        caption_justify="left",
        box=None,
        show_header=False,
        padding=(0, 1, 0, 1),
    )
    for title, lines in group_by_block(grid):
        if title:
            table.add_row("", f"[italic]{escape(title)}[/]")
        for _, line in lines:
            table.add_row()
            for heading, words in zip(grid.header, line):
                if words:
                    table.add_row(escape(heading), style_verdict(words))
    return table


def style_verdict(words: str) -> str:
    """Words for rich; a verdict has its colour."""
    if words in VERDICT_STYLES:
        return f"[{VERDICT_STYLES[words]}]{words}[/]"
    return escape(words)
