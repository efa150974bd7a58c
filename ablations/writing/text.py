"""Grids as text: for a terminal, in Markdown, in CSV."""

import math
from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from ablations.claims.statistics import RowComparison, compute_seed_interval
from ablations.claims.verdicts import FAILS, HOLDS, TIE, Verdict
from ablations.outcomes import Report, ReportRow, ReportTable
from ablations.writing.scores_grid import EFFICIENCY_COLUMNS
from ablations.writing.word_grid import WordGrid, group_by_block, holds_words
from experiments.runtime.text_tables import (
    escape_markdown,
    escape_markdown_cell,
    format_csv,
    measure_whole_columns,
    split_columns,
)

EFFICIENCY_HEADINGS = [column.heading for column in EFFICIENCY_COLUMNS]
EFFICIENCY_KEYS = [column.key for column in EFFICIENCY_COLUMNS]
LEAST_SENTENCE = 16  # columns that a sentence may be folded to
LEADING_COLUMNS = 3  # of a grid of scores, before the families: label, seeds, overall
VERDICT_STYLES = {HOLDS: "green", FAILS: "red", TIE: "blue"}
SPREAD_KEYS = ("ttft_ms_low", "ttft_ms_high")  # in scores.csv alone
CLAIMS_HEADER = (
    "table",
    "claim",
    "row",
    "other",
    "points",
    "families",
    "difference",
    "low",
    "high",
    "own_low",
    "own_high",
    "seeds",
    "verdict",
    "note",
    "source",
)


# ---- Markdown ----


def render_markdown_table(grid: WordGrid, level: int = 2) -> str:
    """A pipe table under a heading; a block's title is a line of its own."""
    lines = []
    if grid.title:
        lines += [f"{'#' * level} {escape_markdown(grid.title)}", ""]
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
        for number, line in block_lines:
            words = list(map(escape_cell, line))
            for column in range(len(words)):
                if (number, column) in grid.bold:
                    words[column] = f"**{words[column]}**"
            lines.append(f"| {' | '.join(words)} |")
    lines.append("")
    for note in grid.notes:
        lines.append(f"{escape_markdown(note)}\n")
    return "\n".join(lines)


def escape_cell(words: str) -> str:
    """Words as they stand inside a pipe table."""
    words = escape_markdown_cell(words)
    return words.replace(" > ", " &gt; ")  # some readers take it for a quotation


# ---- a terminal ----


def render_screen_tables(grid: WordGrid, width: int) -> list[RichTable]:
    """For a terminal. Scores too wide for it get their families in a table of their own, and as many tables
    as they take; of sentences too wide for columns each is a line of its own."""
    main_columns = []
    family_columns = [0]  # the label in both
    for column, heading in enumerate(grid.header):
        if column < LEADING_COLUMNS or heading in EFFICIENCY_HEADINGS:
            main_columns.append(column)
        else:
            family_columns.append(column)
    if "overall" not in grid.header:
        widths = measure_columns(grid, width)
        if len(split_columns(widths, width)) > 1:
            return [render_screen_records(grid)]
        return [render_screen_table(grid, width)]
    halves = [main_columns, family_columns]
    if len(family_columns) == 1 or measure_width(grid) <= width:
        halves = [list(range(len(grid.header)))]
    parts = []
    for half in halves:
        half_grid = select_grid_columns(grid, half, [])
        for columns in split_columns(measure_columns(half_grid, width), width):
            parts.append(select_grid_columns(half_grid, columns, []))
    parts[-1].notes = grid.notes
    return [render_screen_table(part, width) for part in parts]


def measure_columns(grid: WordGrid, width: int) -> list[int]:
    """Letters that each column takes at least: numbers and labels whole, sentences as far as they fold."""
    widths = []
    for column, heading in enumerate(grid.header):
        longest = measure_longest(grid, column)
        if longest > max(LEAST_SENTENCE, width // 8):
            longest = LEAST_SENTENCE
        widths.append(max(longest, *map(len, heading.split()), 0))
    return widths


def measure_width(grid: WordGrid) -> int:
    """Letters that a grid takes without folding."""
    return sum(measure_whole_columns([grid.header, *(line for _, line in grid.lines)]))


def measure_longest(grid: WordGrid, column: int) -> int:
    """Letters of a column's longest words below its heading."""
    return max((len(line[column]) for _, line in grid.lines), default=0)


def select_grid_columns(grid: WordGrid, columns: Sequence[int], notes: list[str]) -> WordGrid:
    """Some columns of a grid."""
    header = [grid.header[column] for column in columns]
    lines = []
    bold = set()
    for number, (block, line) in enumerate(grid.lines):
        cells = [line[column] for column in columns]
        lines.append((block, cells))
        for place, column in enumerate(columns):
            if (number, column) in grid.bold:
                bold.add((number, place))
    return WordGrid(grid.title, header, lines, notes, bold)


def render_screen_table(grid: WordGrid, width: int) -> RichTable:
    """What is too wide folds, short columns do not."""
    table = RichTable(
        title=escape(grid.title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        caption=escape("\n".join(grid.notes)) or None,
        caption_justify="left",
    )
    fits = measure_width(grid) < width
    for column, least_width in enumerate(measure_columns(grid, width)):
        is_sentence = measure_longest(grid, column) > least_width
        table.add_column(
            grid.header[column],
            justify="left" if holds_words(grid, column) else "right",
            overflow="fold",
            # rich would take more from one column than from the others, and cut the last off
            width=None if fits or is_sentence else least_width,
            min_width=least_width,
        )
    for title, lines in group_by_block(grid):
        if title:
            table.add_row(f"[italic]{escape(title)}[/]")
        for number, line in lines:
            words = list(map(style_verdict, line))
            for column in range(len(words)):
                if (number, column) in grid.bold:
                    words[column] = f"[bold]{words[column]}[/]"
            table.add_row(*words)
    return table


def render_screen_records(grid: WordGrid) -> RichTable:
    """Each line of a grid below the other, a heading and its words a line."""
    table = RichTable(
        title=escape(grid.title),
        title_justify="left",
        caption=escape("\n".join(grid.notes)) or None,
        caption_justify="left",
        box=None,
        show_header=False,
        padding=(0, 1, 0, 1),
    )
    for title, lines in group_by_block(grid):
        if title:
            table.add_row("", f"[italic]{escape(title)}[/]")
        for _, line in lines:
            table.add_row()
            for heading, words in zip(grid.header, line):
                if words:
                    table.add_row(heading, style_verdict(words))
    return table


def style_verdict(words: str) -> str:
    """Words for rich; a verdict has its colour."""
    if words in VERDICT_STYLES:
        return f"[{VERDICT_STYLES[words]}]{words}[/]"
    return escape(words)


# ---- CSV ----


def render_scores_csv(report: Report) -> str:
    """Every mean with half its interval, one line a row, for programs."""
    family_names: set[str] = set()
    for table in report.tables:
        family_names.update(table.family_names)
    families = sorted(family_names)
    accuracy_columns = []
    for name in ("overall", *families):
        accuracy_columns += [name, f"{name}_pm"]
    efficiency_keys = [*EFFICIENCY_KEYS, *SPREAD_KEYS]

    leading_columns = ["table", "block", "row", "seeds", "questions"]
    lines: list[list[object]] = [[*leading_columns, *accuracy_columns, *efficiency_keys, "ours"]]
    for table in report.tables:
        for row in table.rows:
            line: list[object] = [table.name, row.block, row.label, len(row.outcomes), len(table.ids)]
            line += list_accuracies(table, row, families)
            for key in efficiency_keys:
                line.append(row.efficiency.get(key, ""))
            lines.append([*line, row.ours or row.absent])
    return format_csv(lines)


def list_accuracies(table: ReportTable, row: ReportRow, families: Sequence[str]) -> list[str]:
    """Mean and half its interval, of all questions and of each family; empty where a row has none."""
    numbers = []
    for family in (None, *families):
        mean = half = math.nan
        if row.outcomes and (family is None or family in table.family_names):
            mean, half = compute_seed_interval(table.compute_accuracies(row, family))
        numbers += [format_csv_number(mean), format_csv_number(half)]
    return numbers


def format_csv_number(value: float) -> str:
    """Four digits after the point; nothing for nan."""
    return "" if math.isnan(value) else f"{value:.4f}"


def render_claims_csv(tables: Sequence[ReportTable], verdicts: Mapping[str, Sequence[Verdict]]) -> str:
    """Every claim and every pair, one line each."""
    lines: list[list[object]] = [[*CLAIMS_HEADER]]
    for table in tables:
        for verdict in verdicts[table.name]:
            claim = verdict.claim
            limits = [claim.points, " ".join(claim.families)]
            numbers = format_interval_numbers(verdict)
            outcome = [verdict.word, verdict.note, claim.source]
            # a claim is of no single pair: row, other and seeds are empty
            lines.append([table.name, claim.text, "", "", *limits, *numbers, "", *outcome])
            for pair in verdict.pairs:
                names = [table.name, claim.text, pair.row, pair.other]
                numbers = format_interval_numbers(pair)
                lines.append([*names, *limits, *numbers, len(pair.seeds), "", "", claim.source])
    return format_csv(lines)


def format_interval_numbers(judged: Verdict | RowComparison) -> list[str]:
    """Estimate and interval of a verdict or pair, and the interval from its own seeds alone."""
    ends = (judged.low, judged.high, judged.own_low, judged.own_high)
    return list(map(format_csv_number, (judged.estimate, *ends)))
