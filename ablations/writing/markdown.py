"""Grids as Markdown."""

from ablations.writing.grids.word_grid import WordGrid, group_by_block, holds_words, spell_line
from experiments.runtime.text_tables import (
    escape_markdown,
    escape_markdown_cell,
)


def render_markdown_table(grid: WordGrid) -> str:
    """A pipe table under a heading; a block's title is a line of its own."""
    lines = []
    if grid.title:
        lines += [f"## {escape_markdown(grid.title)}", ""]
    rules = []
    for column in range(len(grid.header)):
        rules.append("---" if holds_words(grid, column) else "---:")
    header = " | ".join(map(escape_cell, grid.header))
    lines.append(f"| {header} |")
    lines.append(f"|{'|'.join(rules)}|")
    for title, block_lines in group_by_block(grid):
        if title:
            empty_cells = " |" * (len(grid.header) - 1)
            lines.append(f"| *{escape_cell(title)}* |{empty_cells}")
        for number, _ in block_lines:
            words = spell_line(grid, number, escape_cell, "**{}**".format)
            lines.append(f"| {' | '.join(words)} |")
    lines.append("")
    for note in grid.notes:
        lines.append(f"{escape_markdown(note)}\n")
    return "\n".join(lines)


def escape_cell(words: str) -> str:
    """Words as they stand inside a pipe table."""
    words = escape_markdown_cell(words)
    return words.replace(" > ", " &gt; ")  # some readers take it for a quotation
