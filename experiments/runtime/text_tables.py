"""Tables of words, for a screen and in Markdown: the first row is the header, the first column has labels."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table


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
        # a bar inside a word would begin the next column
        escaped_rows.append([word.replace("|", "\\|") for word in row])
    widths = [max(map(len, column)) for column in zip(*escaped_rows)]
    lines = [format_markdown_row(row, widths) for row in escaped_rows]
    rules = ["-" * widths[0]]
    for width in widths[1:]:
        # the colon at the end of a rule sets a column of numbers to the right
        rules.append("-" * (width - 1) + ":")
    lines.insert(1, f"| {' | '.join(rules)} |")
    return lines


def format_markdown_row(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line, the label to the left, numbers to the right."""
    cells = [row[0].ljust(widths[0])]
    for word, width in zip(row[1:], widths[1:]):
        cells.append(word.rjust(width))
    return f"| {' | '.join(cells)} |"
