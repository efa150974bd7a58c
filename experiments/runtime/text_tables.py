"""Tables of words for a screen and in Markdown. The first row is the header, the first column holds labels."""

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
    for position, heading in enumerate(rows[0]):
        is_label = position == 0
        table.add_column(
            escape(heading),
            justify="left" if is_label else "right",
            no_wrap=is_label,
            min_width=5,
            overflow="fold",
        )
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
    """Lines of a Markdown table whose columns are padded to one width: the source reads as a table, too."""
    escaped = [[word.replace("|", "\\|") for word in row] for row in rows]
    widths = [max(len(row[column]) for row in escaped) for column in range(len(escaped[0]))]
    lines = [format_markdown_row(row, widths) for row in escaped]
    # the colon at the end of a rule sets a column of numbers to the right
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, f"| {' | '.join(rules)} |")
    return lines


def format_markdown_row(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line, the label to the left, numbers to the right."""
    cells = [row[0].ljust(widths[0])]
    for word, width in zip(row[1:], widths[1:]):
        cells.append(word.rjust(width))
    return f"| {' | '.join(cells)} |"
