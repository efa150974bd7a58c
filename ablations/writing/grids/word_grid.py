"""A table of words, which every form of a report is written from, and as a data frame."""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any

from compressors.errors import UsageError

if TYPE_CHECKING:
    import pandas


@dataclass
class WordGrid:
    """A table of words: header, (block's title, cells) lines, notes below.

    bold   (number of a line, column) of cells that are the best of their column
    """

    title: str
    header: list[str]
    lines: list[tuple[str, list[str]]]
    notes: list[str] = field(default_factory=list)
    bold: set[tuple[int, int]] = field(default_factory=set)

    def to_pandas(self) -> "pandas.DataFrame":
        """A data frame of the table as it is printed: numbers as far as a column has nothing else, `±` in a
        column of its own, the blocks' titles in the first where there are any. UsageError without pandas."""
        try:
            import pandas
        except ImportError as error:
            raise UsageError(
                "to_pandas() needs pandas: pip install pandas; scores.csv has the same"
            ) from error
        columns: dict[str, list[Any]] = {}
        if any(block for block, _ in self.lines):
            columns["block"] = [block for block, _ in self.lines]
        for column, heading in enumerate(self.header):
            words = [line[column] for _, line in self.lines]
            name = heading or "row"
            while name in columns:  # a family of questions may be called as another column is
                name += "_"
            means = [word.partition(" ±")[0] for word in words]
            columns[name] = convert_numbers(means)
            if means != words:
                columns[f"{name}_pm"] = convert_numbers([word.partition(" ±")[2] for word in words])
        return pandas.DataFrame(columns)


def convert_numbers(words: list[str]) -> list[Any]:
    """Numbers with None for empty words, or the words where any of them is none."""
    try:
        return [float(word) if word else None for word in words]
    except ValueError:
        return list(words)


def group_by_block(grid: WordGrid) -> list[tuple[str, list[tuple[int, list[str]]]]]:
    """(block's title, (number, cells) of lines) of lines that stand together."""
    blocks = []
    # groupby: a title that comes again further down is a block of its own
    for title, numbered in groupby(enumerate(grid.lines), key=lambda line: line[1][0]):
        blocks.append((title, [(number, cells) for number, (_, cells) in numbered]))
    return blocks


def spell_line(
    grid: WordGrid, number: int, escape: Callable[[str], str], embolden: Callable[[str], str]
) -> list[str]:
    """The cells of a line as a form of report writes them, with the best ones of their columns in bold."""
    _, line = grid.lines[number]
    words = []
    for column, cell in enumerate(line):
        word = escape(cell)
        words.append(embolden(word) if (number, column) in grid.bold else word)
    return words


def holds_words(grid: WordGrid, column: int) -> bool:
    """Whether a column holds words, not numbers."""
    return column == 0 or grid.header[column] in ("statement", "verdict", "remarks")
