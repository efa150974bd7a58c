"""The text of --help, folded to a terminal's width.

Commands write it without a width: sentences, and indented entries of two columns, the second of which may go
on below itself.

    Trains cells.

      rows=LABEL    of a table's rows
                    these alone
"""

import re
import shutil
from textwrap import TextWrapper

USAGE = re.compile(r"(Usage: | {7})(?=\S)")
ENTRY = re.compile(r"( +)(\S.*?)( {2,})(?=\S)")
LEAST_MEANING = 32  # columns of an entry's meaning, which else begins below its key
BELOW_KEY = 4  # columns that it is then indented by


def find_width() -> int | None:
    """Columns of the terminal that is written to, or COLUMNS; None where a file or a pipe takes the text."""
    columns = shutil.get_terminal_size((0, 0)).columns
    return max(columns, 2 * LEAST_MEANING) if columns else None


def lay_out_help(text: str, width: int | None) -> str:
    """A help text with no line longer than `width`, as far as words allow; as it is without a width."""
    if width is None:
        return text
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        if lines:
            lines.append("")
        for piece in join_continuations(paragraph.splitlines()):
            lines += fold_piece(piece, width)
    return "\n".join(lines) + "\n" * text.endswith("\n")


def join_continuations(lines: list[str]) -> list[str]:
    """The lines of a paragraph, with the lines that go on with a sentence or an entry in one."""
    pieces: list[str] = []
    meaning_column = 0
    for line in lines:
        indent = len(line) - len(line.lstrip())
        entry = ENTRY.match(line)
        is_sentence = not indent and not USAGE.match(line)
        continues_sentence = is_sentence and pieces and pieces[-1][:1].strip() and not USAGE.match(pieces[-1])
        if continues_sentence or (pieces and meaning_column and indent == meaning_column):
            pieces[-1] += f" {line.lstrip()}"
            continue
        pieces.append(line)
        meaning_column = entry.end() if entry else 0
    return pieces


def fold_piece(piece: str, width: int) -> list[str]:
    """One sentence or entry in as many lines as it takes."""
    usage = USAGE.match(piece)
    entry = ENTRY.match(piece)
    first_indent = ""
    indent = ""
    if usage:
        first_indent, indent = usage[0], " " * (len(usage[0]) + BELOW_KEY)
    elif entry:
        first_indent, indent = entry[0], " " * entry.end()
        if len(piece) > width and width - entry.end() < LEAST_MEANING:
            key = f"{entry[1]}{entry[2]}"
            indent = entry[1] + " " * BELOW_KEY
            return [key, *fold_words(piece[entry.end() :], width, indent, indent)]
    elif piece[:1].isspace():  # an example
        return [piece]
    return fold_words(piece[len(first_indent) :], width, first_indent, indent)


def fold_words(words: str, width: int, first_indent: str, indent: str) -> list[str]:
    """Words between the indents and the width; the longest of them may pass it."""
    wrapper = TextWrapper(
        width=width,
        initial_indent=first_indent,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(words) or [first_indent.rstrip()]
