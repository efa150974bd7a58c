"""Grids as text: for a terminal, in Markdown, in CSV."""

import csv
import io
import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from ablations.claims.statistics import compute_seed_interval
from ablations.claims.verdicts import FAILS, HOLDS, Verdict
from ablations.outcomes import Report, ReportTable
from ablations.writing.grids import EFFICIENCY_COLUMNS, WordGrid

EFFICIENCY_NAMES = {name for name, *_ in EFFICIENCY_COLUMNS}
VERDICT_STYLES = {HOLDS: "green", FAILS: "red"}


def render_markdown_table(grid: WordGrid, level: int = 2) -> str:
    """A pipe table under a heading; a block's title is a line of its own."""
    found = [f"{'#' * level} {grid.title}", ""] if grid.title else []
    header = [escape_pipes(name) for name in grid.header]
    found.append(f"| {' | '.join(header)} |")
    found.append(f"|{'|'.join('---' if holds_words(grid, i) else '---:' for i in range(len(header)))}|")
    for title, lines in group_by_block(grid):
        if title:
            found.append(f"| *{escape_pipes(title)}* |{' |' * (len(header) - 1)}")
        found += [f"| {' | '.join(map(escape_pipes, line))} |" for line in lines]
    return "\n".join([*found, "", *(f"{note}\n" for note in grid.notes)])


def escape_pipes(words: str) -> str:
    """Inside a pipe table."""
    return words.replace("|", "\\|").replace("\n", " ").replace(" > ", " &gt; ")


def group_by_block(grid: WordGrid) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, lines) of lines that stand together."""
    found: list[tuple[str, list[list[str]]]] = []
    for title, line in grid.lines:
        if not found or found[-1][0] != title:
            found.append((title, []))
        found[-1][1].append(line)
    yield from found


def holds_words(grid: WordGrid, column: int) -> bool:
    """Whether a column holds words, not numbers."""
    return column == 0 or grid.header[column] in ("statement", "verdict", "remarks")


def render_screen_tables(grid: WordGrid, width: int) -> list[RichTable]:
    """For a terminal. Scores too wide for it get their families in a table of their own."""
    families = [i for i, name in enumerate(grid.header) if i > 2 and name not in EFFICIENCY_NAMES]
    needed = sum(
        max(len(row[i]) for row in (grid.header, *(line for _, line in grid.lines))) + 2
        for i in range(len(grid.header))
    )
    if "overall" not in grid.header or needed <= width or not families:
        return [render_screen_table(grid, width)]
    others = [i for i in range(len(grid.header)) if i not in families]
    halves = select_grid_columns(grid, others, []), select_grid_columns(grid, [0, *families], grid.notes)
    return [render_screen_table(half, width) for half in halves]


def select_grid_columns(grid: WordGrid, kept: Sequence[int], notes: list[str]) -> WordGrid:
    """Some columns of a grid."""
    lines = [(block, [line[i] for i in kept]) for block, line in grid.lines]
    return WordGrid(grid.title, [grid.header[i] for i in kept], lines, notes)


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
    for i, name in enumerate(grid.header):
        longest = max([len(line[i]) for _, line in grid.lines], default=0)
        table.add_column(
            name,
            justify="left" if holds_words(grid, i) else "right",
            overflow="fold",
            min_width=longest if longest <= max(16, width // 8) else 8,
        )
    for title, lines in group_by_block(grid):
        if title:
            table.add_row(f"[italic]{escape(title)}[/]")
        for line in lines:
            words = [f"[{VERDICT_STYLES[w]}]{w}[/]" if w in VERDICT_STYLES else escape(w) for w in line]
            table.add_row(*words)
    return table


def render_scores_csv(report: Report) -> str:
    """Every mean with half its interval, one line a row, for programs."""
    families = sorted({f for table in report.tables for f in table.family_names})
    keys = [*(key for _, key, _ in EFFICIENCY_COLUMNS), "ttft_ms_low", "ttft_ms_high"]
    header = [f"{name}{end}" for name in ("overall", *families) for end in ("", "_pm")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "block", "row", "seeds", "questions", *header, *keys, "ours"])
    for table in report.tables:
        for row in table.rows:
            numbers = []
            for family in (None, *families):
                known = row.outcomes and (family is None or family in table.family_names)
                mean, half = (
                    compute_seed_interval(table.compute_accuracies(row, family))
                    if known
                    else (math.nan, math.nan)
                )
                numbers += ["" if math.isnan(value) else f"{value:.4f}" for value in (mean, half)]
            writer.writerow(
                [
                    table.name,
                    row.block,
                    row.label,
                    len(row.outcomes),
                    len(table.ids),
                    *numbers,
                    *(row.efficiency.get(key, "") for key in keys),
                    row.ours,
                ]
            )
    return out.getvalue()


def render_claims_csv(tables: Sequence[ReportTable], verdicts: dict[str, list[Verdict]]) -> str:
    """Every claim and every pair, one line each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [
            "table",
            "claim",
            "row",
            "other",
            "points",
            "families",
            "difference",
            "low",
            "high",
            "seeds",
            "verdict",
            "note",
            "source",
        ]
    )
    for table in tables:
        for each in verdicts[table.name]:
            claim = each.claim
            shared = [claim.points, " ".join(claim.families)]
            writer.writerow(
                [
                    table.name,
                    claim.text,
                    "",
                    "",
                    *shared,
                    *format_interval_numbers(each),
                    "",
                    each.word,
                    each.note,
                    claim.source,
                ]
            )
            for pair in each.pairs:
                writer.writerow(
                    [
                        table.name,
                        claim.text,
                        pair.row,
                        pair.other,
                        *shared,
                        *format_interval_numbers(pair),
                        len(pair.seeds),
                        "",
                        "",
                        claim.source,
                    ]
                )
    return out.getvalue()


def format_interval_numbers(each) -> list[str]:
    """Estimate and interval of a verdict or pair."""
    return ["" if math.isnan(v) else f"{v:.4f}" for v in (each.estimate, each.low, each.high)]
