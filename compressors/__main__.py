"""Lists every compressor: its tokens, what it learns, reads and needs, its paper and its knobs.

Tokens, width and parameters are those at default knobs, behind a tower of 1152 channels and before an LLM of
2560. `text`: reads the question. `projects`: makes tokens at the LLM's width, no projector follows. `levels`:
reads several hidden states of the tower. A switch there, such as `text=true`, turns that on.

A broken compressor of an outside package has a line under the list that says why, and the exit code stays 0;
one that is asked for by name is an error.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

import compressors
from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError, join_lines
from compressors.help_layout import find_width

if TYPE_CHECKING:
    from compressors.listing import CompressorFacts

COLUMNS = ("name", "tokens", "width", "learned", "text", "projects", "levels", "source")
NARROW_COLUMNS = ("name", "tokens", "width", "learned", "source")  # the others stand below
WIDTH = 110  # where no terminal has one
INDENT = " " * 4


@dataclass(frozen=True)
class ListingOptions:
    """It has no settings."""


COMMAND = Command(
    usage="python -m compressors [NAME ...]",
    description=f"{__doc__}\nNAME: these compressors only.",
    options=ListingOptions,
    words=(0, None),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(list_compressors, arguments)


def list_compressors(line: CommandLine) -> int:
    """Print the list, and a line for each compressor that cannot be listed. UsageError for one of these that
    is asked for by name."""
    from compressors.listing import collect_facts  # imports torch, for which --help does not wait

    listed: list[CompressorFacts] = []
    faults: list[str] = []
    for name in line.words or compressors.names():
        try:
            listed.append(collect_facts(name))
        except UsageError as error:
            if line.words:
                raise
            faults.append(f"not listed: {join_lines(error)}\n")  # an import's error may have several lines
    sys.stdout.write(format_listing(listed, find_width() or WIDTH))
    sys.stdout.writelines(faults)
    return 0


def format_listing(listed: Sequence["CompressorFacts"], width: int = WIDTH) -> str:
    """A line of columns for each compressor, and indented below it: title, summary, rule and knobs."""
    columns = COLUMNS if width >= WIDTH else NARROW_COLUMNS
    rows = [list(columns)]
    for facts in listed:
        rows.append([getattr(facts, column) for column in columns])
    widths = [max(len(row[column]) for row in rows) for column in range(len(columns))]
    header, *lines = [format_row(row, widths) for row in rows]
    text = [header]
    for line, facts in zip(lines, listed):
        text.append(line)
        text += format_paragraphs(facts, width)
    return "\n".join(text) + "\n"


def format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line, its columns padded."""
    padded = [word.ljust(width) for word, width in zip(row, widths)]
    return "  ".join(padded).rstrip()


def format_paragraphs(facts: "CompressorFacts", width: int) -> list[str]:
    """What follows a compressor's line."""
    lines: list[str] = []
    flags = ""
    if width < WIDTH:
        hidden_columns = [column for column in COLUMNS if column not in NARROW_COLUMNS]
        flags = "  ".join(f"{column}: {getattr(facts, column)}" for column in hidden_columns)
    cues = f"asks the tower for: {facts.cues}" if facts.cues else ""
    for text in (facts.title, facts.summary, facts.rule, flags, cues, "  ".join(facts.knobs)):
        lines += wrap(
            text,
            width,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
