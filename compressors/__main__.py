"""Lists every compressor: its tokens, what it learns, reads and needs, its paper and its knobs.

Tokens, width and parameters are those at default knobs, behind a tower of 1152 channels and before an LLM of
2560. `text`: reads the question. `projects`: makes tokens at the LLM's width, no projector follows. `levels`:
reads several hidden states of the tower. A switch there, such as `text=true`, turns that on.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING

import compressors
from compressors.command_line import Command, CommandLine

if TYPE_CHECKING:
    from compressors.listing import CompressorFacts

COLUMNS = ("name", "tokens", "width", "learned", "text", "projects", "levels", "source")
WIDTH = 110
INDENT = " " * 4


@dataclass(frozen=True)
class ListingOptions:
    """It has no settings."""


COMMAND = Command(
    usage="python -m compressors [NAME ...]",
    description=f"{__doc__}\n\nNAME: these compressors only.",
    options=ListingOptions,
    words=(0, None),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(list_compressors, arguments)


def list_compressors(line: CommandLine) -> int:
    """Print the list."""
    from compressors.listing import collect_facts  # imports torch, for which --help does not wait

    names = line.words or compressors.names()
    sys.stdout.write(format_listing([collect_facts(name) for name in names]))
    return 0


def format_listing(listed: Sequence["CompressorFacts"]) -> str:
    """A line of columns for each compressor, and indented below it: title, summary, rule and knobs."""
    rows = [list(COLUMNS)]
    for facts in listed:
        rows.append([getattr(facts, column) for column in COLUMNS])
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    header, *lines = [format_row(row, widths) for row in rows]
    text = [header]
    for line, facts in zip(lines, listed):
        text.append(line)
        text += format_paragraphs(facts)
    return "\n".join(text) + "\n"


def format_row(row: Sequence[str], widths: Sequence[int]) -> str:
    """One line, its columns padded."""
    padded = [word.ljust(width) for word, width in zip(row, widths)]
    return "  ".join(padded).rstrip()


def format_paragraphs(facts: "CompressorFacts") -> list[str]:
    """What follows a compressor's line."""
    lines: list[str] = []
    cues = f"asks the tower for: {facts.cues}" if facts.cues else ""
    for text in (facts.title, facts.summary, facts.rule, cues, "  ".join(facts.knobs)):
        lines += wrap(
            text,
            WIDTH,
            initial_indent=INDENT,
            subsequent_indent=INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
