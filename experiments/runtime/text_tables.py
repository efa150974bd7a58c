"""Tables of words, for a screen, in Markdown and in CSV: the first row is the header, labels come first."""

import csv
import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

LEAST_WIDTH = 5  # letters of a column
GAP = 2  # spaces between columns
# what begins a formula in a spreadsheet, full-width signs too
FORMULA_SIGNS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def make_word_tables(
    rows: Sequence[Sequence[str]], width: int, *, title: str = "", caption: str = ""
) -> list[Table]:
    """A table for a screen, or several that fit its width, each with the labels. None of the words is markup;
    headings fold between words."""
    widths = [measure_column(column) for column in zip(*rows)]
    whole_widths = measure_whole_columns(rows)
    parts = split_columns(widths, width)
    tables = []
    for columns in parts:
        table = Table(
            title=escape(title) or None if columns is parts[0] else None,
            caption=escape(caption) or None if columns is parts[-1] else None,
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        fits = sum(whole_widths[column] for column in columns) < width
        for column in columns:
            # labels stand on one line: a row that folds there reads as two
            table.add_column(
                escape(rows[0][column]),
                justify="right" if column else "left",
                no_wrap=not column,
                # rich would take more from one column than from the others, and cut the last off
                width=None if fits else widths[column],
                min_width=LEAST_WIDTH,
                overflow="fold",
            )
        for row in rows[1:]:
            table.add_row(*[escape(row[column]) for column in columns])
        tables.append(table)
    return tables


def measure_column(words: Sequence[str]) -> int:
    """Letters that a column takes whose heading, the first of its words, may fold between them."""
    heading, *cells = words
    return max([LEAST_WIDTH, *map(len, cells), *map(len, heading.split())])


def measure_whole_columns(rows: Sequence[Sequence[str]]) -> list[int]:
    """Letters that each column takes where nothing folds, with the gap to the next one."""
    return [max(map(len, column)) + GAP for column in zip(*rows)]


def split_columns(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each part of a table that is too wide for a screen; all parts begin with the first."""
    parts: list[list[int]] = []
    room = 0
    for column in range(1, len(widths)):
        if not parts or widths[column] + GAP > room:
            parts.append([0])
            room = width - widths[0] - GAP - 1  # the frame's left edge
        parts[-1].append(column)
        room -= widths[column] + GAP
    return parts or [[0]]


def make_framed_table(rows: Sequence[Sequence[str]], *, title: str = "", numbers: bool = True) -> Table:
    """A table for a screen with a frame and lines between its columns; `numbers` stand to the right."""
    table = Table(title=escape(title) or None, title_justify="left")
    for position, heading in enumerate(rows[0]):
        table.add_column(
            escape(heading),
            justify="right" if numbers and position else "left",
            overflow="fold",  # a label that is cut may be the same as another one's
        )
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table


def format_markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, with columns padded to one width: its source reads as a table too."""
    escaped_rows: list[list[str]] = []
    for row in rows:
        escaped_rows.append(list(map(escape_markdown_cell, row)))
    widths = [max(map(len, column)) for column in zip(*escaped_rows)]
    lines = [format_markdown_row(row, widths) for row in escaped_rows]
    rules = ["-" * widths[0]]
    for width in widths[1:]:
        # the colon at the end of a rule sets a column of numbers to the right
        rules.append("-" * (width - 1) + ":")
    lines.insert(1, f"| {' | '.join(rules)} |")
    return lines


def escape_markdown(words: str) -> str:
    """Words as Markdown shows them: no HTML and no link or picture out of somebody's label."""
    return words.replace("<", "&lt;").replace("](", "]\\(")


def escape_markdown_cell(words: str) -> str:
    """Words as they stand inside a Markdown table."""
    # a bar would begin the next column, a line's end the next row
    return " ".join(escape_markdown(words).replace("|", "\\|").splitlines())


def format_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(list(map(disarm_formula, row)))
    return text.getvalue()


def disarm_formula(word: object) -> object:
    """What a spreadsheet would run as a formula, with the apostrophe that makes words of it; numbers stay."""
    if not isinstance(word, str):
        return word
    word = word.replace("\r", " ")  # which would end a line, and is not quoted
    if not word.lstrip().startswith(FORMULA_SIGNS):
        return word
    try:
        float(word)
        return word
    except ValueError:
        return f"'{word}"


def format_markdown_row(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line, the label to the left, numbers to the right."""
    cells = [row[0].ljust(widths[0])]
    for word, width in zip(row[1:], widths[1:]):
        cells.append(word.rjust(width))
    return f"| {' | '.join(cells)} |"
