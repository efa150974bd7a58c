"""The printed table: what each row got right, overall and in each family of questions."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from experiments.config.cells import BLIND_ROW
from experiments.store.results import Group, Row

Z = 1.96  # 95 %
NOTE = (
    "Accuracy in %. Chance: each family's most frequent answer. Blind: trained and asked without images. "
    "±: standard deviation over seeds; with one seed, half the 95 % Wilson interval of its questions."
)


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n."""
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return centre - half, centre + half


def spread(values: Sequence[float], n: int) -> float:
    """Sample standard deviation over seeds; of a single value half its Wilson interval over n questions."""
    if len(values) > 1:
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    low, high = wilson(values[0], max(n, 1))
    return (high - low) / 2


def families(group: Group) -> list[str]:
    """All families of a group's questions; a single one would repeat the overall column."""
    found = sorted({f for row in group.rows for run in row.runs for f in run["families"]})
    return found if len(found) > 1 else []


def score(row: Row, family: str | None) -> tuple[float, float]:
    """Mean in % and its ±, overall or of a family; nan where a row has no such questions."""
    if family is None:
        values, n = [run["overall"] for run in row.runs], row.runs[0]["n"]
    else:
        values = [run["families"].get(family, math.nan) for run in row.runs]
        n = row.runs[0].get("counts", {}).get(family, 0)
    return 100 * sum(values) / len(values), 100 * spread(values, n) if row.label != "chance" else 0.0


def notes(group: Group) -> list[str]:
    """Below a table: rows that may have learned nothing from the image."""
    intervals = [(row.label, *wilson(score(row, None)[0] / 100, row.runs[0]["n"])) for row in group.rows]
    blind = {label for label, *_ in intervals if label.split(" ")[0] == BLIND_ROW}
    limit = max((high for label, _, high in intervals if label in blind), default=-1.0)
    lost = [label for label, low, _ in intervals if label not in {"chance", *blind} and low <= limit]
    if not lost:
        return []
    return [
        f"No better than blind, as far as these questions can tell: {', '.join(lost)}. Where that is not "
        "meant, train longer, or stage 1 at a lower learning rate (pretrain.lr)."
    ]


def tokens(row: Row, name: str) -> str:
    """A token count of metrics.json; nothing for a row that has no model."""
    efficiency: Mapping[str, Any] = row.runs[0].get("efficiency", {})
    return str(efficiency.get(name, ""))


def duration(row: Row) -> str:
    """Mean time of a cell with all its stages, shared ones included."""
    if not row.seconds:
        return ""
    seconds = round(sum(row.seconds) / len(row.seconds))
    return f"{seconds // 60}:{seconds % 60:02d}" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def lines(group: Group) -> list[list[str]]:
    """Header and rows as words; families without ±, they are in the CSV."""
    header = ["", "visual tokens", "query tokens", "overall", *families(group)]
    found = [header]
    for row in group.rows:
        seeds = f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else ""
        mean, pm = score(row, None)
        overall = f"{mean:.1f} ±{pm:.1f}" if row.label != "chance" else f"{mean:.1f}"
        found.append(
            [
                row.label + seeds,
                tokens(row, "visual_tokens"),
                tokens(row, "query_tokens"),
                overall,
                *(f"{score(row, f)[0]:.1f}" for f in families(group)),
            ]
        )
    return found


def terminal(group: Group, width: int) -> list[Table]:
    """For a screen, with the time each row took; a narrow one gets the families in a table of their own."""
    rows = [[*words, time] for words, time in zip(lines(group), ("time", *map(duration, group.rows)))]
    caption = "\n".join([NOTE, *notes(group)])
    if sum(max(map(len, column)) + 2 for column in zip(*rows)) < width or not families(group):
        return [screen_table(rows, title=group.title, caption=caption)]
    summary, by_family = [[*row[:4], row[-1]] for row in rows], [[row[0], *row[4:-1]] for row in rows]
    return [screen_table(summary, title=group.title), screen_table(by_family, caption=caption)]


def screen_table(rows: Sequence[Sequence[str]], **words: str) -> Table:
    """A table of words, none of them markup, whose first row is the header; headings fold where there is no
    room."""
    words = {key: escape(text) for key, text in words.items()}
    table = Table(
        **words, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for i, name in enumerate(map(escape, rows[0])):
        table.add_column(name, justify="right" if i else "left", no_wrap=i == 0, min_width=5, overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table


def markdown(groups: Sequence[Group]) -> str:
    """The same rows without times, so that the same results give the same bytes."""
    found = []
    for group in groups:
        rows = lines(group)
        found += [f"### {group.title}", "", *pipes(rows), "", *(f"{note}\n" for note in notes(group))]
    return "\n".join([*found, NOTE, ""])


def pipes(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose first row is the header, the first column to the left."""
    rows = [[word.replace("|", "\\|") for word in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = ["-" * size if i == 0 else "-" * (size - 1) + ":" for i, size in enumerate(widths)]
    found = []
    for row in rows:
        label, *numbers = (w.rjust(size) for w, size in zip(row, widths))
        found.append(f"| {' | '.join([row[0].ljust(widths[0]), *numbers])} |")
    return [found[0], f"| {' | '.join(rule)} |", *found[1:]]


def as_csv(groups: Sequence[Group]) -> str:
    """Every score with its ±, one line a row, for programs."""
    names = sorted({f for group in groups for f in families(group)})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}{end}" for name in ("overall", *names) for end in ("", "_pm")]
    writer.writerow(["questions", "row", "seeds", "n", "visual_tokens", "query_tokens", *columns])
    for group in groups:
        for row in group.rows:
            scores = [f"{value:.3f}" for name in (None, *names) for value in score(row, name)]
            writer.writerow(
                [
                    group.title.partition(":")[0],
                    row.label,
                    len(row.runs),
                    row.runs[0]["n"],
                    tokens(row, "visual_tokens"),
                    tokens(row, "query_tokens"),
                    *scores,
                ]
            )
    return out.getvalue()
