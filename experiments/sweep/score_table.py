"""The printed table: what each row got right, overall and in each family of questions."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.config.cells import BLIND_ROW
from experiments.runtime.text_tables import format_markdown_table, make_word_table
from experiments.store.results import ScoreGroup, ScoreRow

Z_OF_95_PERCENT = 1.96  # 95 %
SCORE_NOTE = (
    "Accuracy in %. Chance: each family's most frequent answer. Blind: trained and asked without images. "
    "±: standard deviation over seeds; with one seed, half the 95 % Wilson interval of its questions."
)


def find_wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n."""
    centre = (share + Z_OF_95_PERCENT * Z_OF_95_PERCENT / (2 * n)) / (
        1 + Z_OF_95_PERCENT * Z_OF_95_PERCENT / n
    )
    half = (
        Z_OF_95_PERCENT
        / (1 + Z_OF_95_PERCENT * Z_OF_95_PERCENT / n)
        * math.sqrt(share * (1 - share) / n + Z_OF_95_PERCENT * Z_OF_95_PERCENT / (4 * n * n))
    )
    return centre - half, centre + half


def find_score_spread(values: Sequence[float], n: int) -> float:
    """Sample standard deviation over seeds; of a single value half its Wilson interval over n questions."""
    if len(values) > 1:
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    low, high = find_wilson_interval(values[0], max(n, 1))
    return (high - low) / 2


def list_question_families(group: ScoreGroup) -> list[str]:
    """All families of a group's questions; a single one would repeat the overall column."""
    found = sorted({f for row in group.rows for run in row.runs for f in run["families"]})
    return found if len(found) > 1 else []


def average_row_score(row: ScoreRow, family: str | None) -> tuple[float, float]:
    """Mean in % and its ±, overall or of a family; nan where a row has no such questions."""
    if family is None:
        values, n = [run["overall"] for run in row.runs], row.runs[0]["n"]
    else:
        values = [run["families"].get(family, math.nan) for run in row.runs]
        n = row.runs[0].get("counts", {}).get(family, 0)
    return 100 * sum(values) / len(values), 100 * find_score_spread(
        values, n
    ) if row.label != "chance" else 0.0


def make_blind_notes(group: ScoreGroup) -> list[str]:
    """Below a table: rows that may have learned nothing from the image."""
    intervals = [
        (row.label, *find_wilson_interval(average_row_score(row, None)[0] / 100, row.runs[0]["n"]))
        for row in group.rows
    ]
    blind = {label for label, *_ in intervals if label.split(" ")[0] == BLIND_ROW}
    limit = max((high for label, _, high in intervals if label in blind), default=-1.0)
    lost = [label for label, low, _ in intervals if label not in {"chance", *blind} and low <= limit]
    if not lost:
        return []
    return [
        f"No better than blind, as far as these questions can tell: {', '.join(lost)}. Where that is not "
        "meant, train longer, or stage 1 at a lower learning rate (pretrain.lr)."
    ]


def format_token_count(row: ScoreRow, name: str) -> str:
    """A token count of metrics.json; nothing for a row that has no model."""
    efficiency: Mapping[str, Any] = row.runs[0].get("efficiency", {})
    return str(efficiency.get(name, ""))


def format_mean_duration(row: ScoreRow) -> str:
    """Mean time of a cell with all its stages, shared ones included."""
    if not row.seconds:
        return ""
    seconds = round(sum(row.seconds) / len(row.seconds))
    return f"{seconds // 60}:{seconds % 60:02d}" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def make_score_lines(group: ScoreGroup) -> list[list[str]]:
    """Header and rows as words; families without ±, they are in the CSV."""
    header = ["", "visual tokens", "query tokens", "overall", *list_question_families(group)]
    found = [header]
    for row in group.rows:
        seeds = f" ({len(row.runs)} seeds)" if len(row.runs) > 1 else ""
        mean, pm = average_row_score(row, None)
        overall = f"{mean:.1f} ±{pm:.1f}" if row.label != "chance" else f"{mean:.1f}"
        found.append(
            [
                row.label + seeds,
                format_token_count(row, "visual_tokens"),
                format_token_count(row, "query_tokens"),
                overall,
                *(f"{average_row_score(row, f)[0]:.1f}" for f in list_question_families(group)),
            ]
        )
    return found


def make_screen_tables(group: ScoreGroup, width: int) -> list[Table]:
    """For a screen, with the time each row took; a narrow one gets the families in a table of their own."""
    rows = [
        [*words, time]
        for words, time in zip(make_score_lines(group), ("time", *map(format_mean_duration, group.rows)))
    ]
    caption = "\n".join([SCORE_NOTE, *make_blind_notes(group)])
    if sum(max(map(len, column)) + 2 for column in zip(*rows)) < width or not list_question_families(group):
        return [make_word_table(rows, title=group.title, caption=caption)]
    summary, by_family = [[*row[:4], row[-1]] for row in rows], [[row[0], *row[4:-1]] for row in rows]
    return [make_word_table(summary, title=group.title), make_word_table(by_family, caption=caption)]


def format_score_markdown(groups: Sequence[ScoreGroup]) -> str:
    """The same rows without times, so that the same results give the same bytes."""
    found = []
    for group in groups:
        rows = make_score_lines(group)
        found += [
            f"### {group.title}",
            "",
            *format_markdown_table(rows),
            "",
            *(f"{note}\n" for note in make_blind_notes(group)),
        ]
    return "\n".join([*found, SCORE_NOTE, ""])


def format_score_csv(groups: Sequence[ScoreGroup]) -> str:
    """Every score with its ±, one line a row, for programs."""
    names = sorted({f for group in groups for f in list_question_families(group)})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [f"{name}{end}" for name in ("overall", *names) for end in ("", "_pm")]
    writer.writerow(["questions", "row", "seeds", "n", "visual_tokens", "query_tokens", *columns])
    for group in groups:
        for row in group.rows:
            scores = [f"{value:.3f}" for name in (None, *names) for value in average_row_score(row, name)]
            writer.writerow(
                [
                    group.title.partition(":")[0],
                    row.label,
                    len(row.runs),
                    row.runs[0]["n"],
                    format_token_count(row, "visual_tokens"),
                    format_token_count(row, "query_tokens"),
                    *scores,
                ]
            )
    return out.getvalue()
