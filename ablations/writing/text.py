"""Grids as text: for a terminal, in Markdown, in CSV."""

import csv
import io
import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table as RichTable

from ablations.claims.statistics import seed_interval
from ablations.claims.verdicts import FAILS, HOLDS, Verdict
from ablations.outcomes import Report, Table
from ablations.writing.grids import COLUMNS, Grid

UNSPLIT = {name for name, *_ in COLUMNS}
STYLES = {HOLDS: "green", FAILS: "red"}


def markdown(grid: Grid, level: int = 2) -> str:
    """A pipe table under a heading; a block's title is a line of its own."""
    found = [f"{'#' * level} {grid.title}", ""] if grid.title else []
    header = [escaped(name) for name in grid.header]
    found.append(f"| {' | '.join(header)} |")
    found.append(f"|{'|'.join('---' if left(grid, i) else '---:' for i in range(len(header)))}|")
    for title, lines in blocks(grid):
        if title:
            found.append(f"| *{escaped(title)}* |{' |' * (len(header) - 1)}")
        found += [f"| {' | '.join(map(escaped, line))} |" for line in lines]
    return "\n".join([*found, "", *(f"{note}\n" for note in grid.notes)])


def escaped(words: str) -> str:
    """Inside a pipe table."""
    return words.replace("|", "\\|").replace("\n", " ").replace(" > ", " &gt; ")


def blocks(grid: Grid) -> Iterator[tuple[str, list[list[str]]]]:
    """(title, lines) of lines that stand together."""
    found: list[tuple[str, list[list[str]]]] = []
    for title, line in grid.lines:
        if not found or found[-1][0] != title:
            found.append((title, []))
        found[-1][1].append(line)
    yield from found


def left(grid: Grid, column: int) -> bool:
    """Whether a column holds words, not numbers."""
    return column == 0 or grid.header[column] in ("statement", "verdict", "remarks")


def screen(grid: Grid, width: int) -> list[RichTable]:
    """For a terminal. Scores too wide for it get their families in a table of their own."""
    families = [i for i, name in enumerate(grid.header) if i > 2 and name not in UNSPLIT]
    needed = sum(
        max(len(row[i]) for row in (grid.header, *(line for _, line in grid.lines))) + 2
        for i in range(len(grid.header))
    )
    if "overall" not in grid.header or needed <= width or not families:
        return [screen_table(grid, width)]
    others = [i for i in range(len(grid.header)) if i not in families]
    halves = part(grid, others, []), part(grid, [0, *families], grid.notes)
    return [screen_table(half, width) for half in halves]


def part(grid: Grid, kept: Sequence[int], notes: list[str]) -> Grid:
    """Some columns of a grid."""
    lines = [(block, [line[i] for i in kept]) for block, line in grid.lines]
    return Grid(grid.title, [grid.header[i] for i in kept], lines, notes)


def screen_table(grid: Grid, width: int) -> RichTable:
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
            justify="left" if left(grid, i) else "right",
            overflow="fold",
            min_width=longest if longest <= max(16, width // 8) else 8,
        )
    for title, lines in blocks(grid):
        if title:
            table.add_row(f"[italic]{escape(title)}[/]")
        for line in lines:
            words = [f"[{STYLES[w]}]{w}[/]" if w in STYLES else escape(w) for w in line]
            table.add_row(*words)
    return table


def scores_csv(report: Report) -> str:
    """Every mean with half its interval, one line a row, for programs."""
    families = sorted({f for table in report.tables for f in table.family_names})
    keys = [*(key for _, key, _ in COLUMNS), "ttft_ms_low", "ttft_ms_high"]
    header = [f"{name}{end}" for name in ("overall", *families) for end in ("", "_pm")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["table", "block", "row", "seeds", "questions", *header, *keys, "ours"])
    for table in report.tables:
        for row in table.rows:
            numbers = []
            for family in (None, *families):
                known = row.outcomes and (family is None or family in table.family_names)
                mean, half = seed_interval(table.scores(row, family)) if known else (math.nan, math.nan)
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


def claims_csv(tables: Sequence[Table], verdicts: dict[str, list[Verdict]]) -> str:
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
                    *numbers_of(each),
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
                        *numbers_of(pair),
                        len(pair.seeds),
                        "",
                        "",
                        claim.source,
                    ]
                )
    return out.getvalue()


def numbers_of(each) -> list[str]:
    """Estimate and interval of a verdict or pair."""
    return ["" if math.isnan(v) else f"{v:.4f}" for v in (each.estimate, each.low, each.high)]
