"""Lists every compressor: its tokens, what it learns, reads and needs, its paper and its knobs.

Tokens, width and parameters are those at default knobs, behind a tower of 1152 channels and before an LLM of
2560. `text`: reads the question. `projects`: makes tokens at the LLM's width, no projector follows. `levels`:
reads several hidden states of the tower. A switch there, such as `text=true`, turns that on.
"""

import argparse
import sys
from collections.abc import Sequence
from textwrap import wrap

import compressors
from compressors import UsageError

COLUMNS = ("name", "tokens", "width", "learned", "text", "projects", "levels", "source")
WIDTH, INDENT = 110, " " * 4


def table(found: Sequence) -> str:
    """A line of columns for each of the `Facts`, and indented below it: title, summary, rule and knobs."""
    rows = [COLUMNS, *(tuple(getattr(each, column) for column in COLUMNS) for each in found)]
    sizes = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(row, sizes)).rstrip() for row in rows]
    blocks = [[line, *below(each)] for line, each in zip(lines[1:], found)]
    return "\n".join([lines[0], *(line for block in blocks for line in block)]) + "\n"


def below(each) -> list[str]:
    """What follows a compressor's line."""
    paragraphs = [each.title, each.summary, each.rule, "  ".join(each.knobs)]
    return [
        line
        for text in paragraphs
        for line in wrap(
            text,
            WIDTH,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        "python -m compressors", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="these compressors only")
    wanted = parser.parse_args(arguments).names
    try:
        from compressors.listing import facts  # torch: not for --help

        sys.stdout.write(table([facts(name) for name in wanted or compressors.names()]))
    except UsageError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
