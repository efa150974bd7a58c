"""Tables of words, for a screen, in Markdown and in CSV: the first row is the header, labels come first."""

import csv
import io
from collections.abc import Iterable, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

# what begins a formula in a spreadsheet, full-width signs too
FORMULA_SIGNS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def make_word_table(rows: Sequence[Sequence[str]], *, title: str = "", caption: str = "") -> Table:
    """A table for a screen. None of the words is markup; headings fold where there is no room."""
    table = Table(
        title=escape(title) or None,
        caption=escape(caption) or None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    label_heading, *headings = rows[0]
    # labels stand on one line: a row that folds there reads as two
    table.add_column(escape(label_heading), justify="left", no_wrap=True, min_width=5, overflow="fold")
    for heading in headings:
        table.add_column(escape(heading), justify="right", no_wrap=False, min_width=5, overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table


def make_framed_table(rows: Sequence[Sequence[str]], *, title: str = "", numbers: bool = True) -> Table:
    """A table for a screen with a frame and lines between its columns; `numbers` stand to the right."""
    table = Table(title=escape(title) or None, title_justify="left")
    for position, heading in enumerate(rows[0]):
        table.add_column(escape(heading), justify="right" if numbers and position else "left")
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
