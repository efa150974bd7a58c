"""The printed table: what each row got right, overall and in each family of questions."""

import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.runtime.text_tables import (
    escape_markdown,
    format_csv,
    format_markdown_table,
    make_word_tables,
    measure_whole_columns,
)
from experiments.store.results import CHANCE_ROW, ScoreGroup, ScoreRow

Z_OF_95_PERCENT = 1.96
PRUNED_TOKENS = "average_visual_tokens"  # of a row with a pruner
SUMMARY_COLUMNS = 4  # label, visual tokens, query tokens, overall; families follow
SCORES_AFTER = 6  # fields of a record before its scores, the last two of them tokens
SCORE_NOTE = (
    "Accuracy in %. Chance: each family's most frequent answer. Blind: trained and asked without images. "
    "±: standard deviation over seeds; with one seed, half the 95 % Wilson interval of its questions."
)


def find_wilson_interval(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson 1927), which stays within 0 and 1 for small n too."""
    z = Z_OF_95_PERCENT
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    variance = share * (1 - share) / n
    half = z / scale * math.sqrt(variance + z * z / (4 * n * n))
    return centre - half, centre + half


def find_score_spread(values: Sequence[float], n: int) -> float:
    """Sample standard deviation over seeds; of a single value half its Wilson interval over n questions."""
    if len(values) > 1:
        mean = sum(values) / len(values)
        squares = sum((value - mean) ** 2 for value in values)
        return math.sqrt(squares / (len(values) - 1))
    low, high = find_wilson_interval(values[0], max(n, 1))
    return (high - low) / 2


def list_question_families(group: ScoreGroup) -> list[str]:
    """All families of a group's questions; a single one would repeat the overall column."""
    families: set[str] = set()
    for row in group.rows:
        for run in row.runs:
            families |= run["families"].keys()
    if len(families) == 1:
        return []
    return sorted(families)


def average_row_score(row: ScoreRow, family: str | None) -> tuple[float, float]:
    """Mean in % and its ±, overall or of a family; nan where a row has no such questions."""
    if family is None:
        values = [run["overall"] for run in row.runs]
        n = row.runs[0]["n"]
    else:
        values = [run["families"].get(family, math.nan) for run in row.runs]
        n = row.runs[0].get("counts", {}).get(family, 0)
    mean = 100 * sum(values) / len(values)
    if row.label == CHANCE_ROW:  # known exactly
        return mean, 0.0
    return mean, 100 * find_score_spread(values, n)


def make_blind_notes(group: ScoreGroup) -> list[str]:
    """Below a table: rows that may have learned nothing from the image.

    A row is named if the low end of its interval is below the high end of a blind row's."""
    blind_limit = -1.0
    low_ends = []  # label and low end of each row that sees images
    for row in group.rows:
        mean, _ = average_row_score(row, None)
        low, high = find_wilson_interval(mean / 100, row.runs[0]["n"])
        if row.blind:
            blind_limit = max(blind_limit, high)
        elif row.label != CHANCE_ROW:
            low_ends.append((row.label, low))
    unseeing = [label for label, low in low_ends if low <= blind_limit]
    if not unseeing:
        return []
    return [
        f"No better than blind, as far as these questions can tell: {', '.join(unseeing)}. If you expected "
        "more: train longer, or lower stage 1's learning rate (pretrain.lr)."
    ]


def count_answers(group: ScoreGroup, key: str, total_key: str) -> str:
    """Rows with answers that runs count under `key`, each with how many of how many, which runs count under
    `total_key`; empty without any."""
    words = []
    for row in group.rows:
        count = sum(run.get(key, 0) for run in row.runs)
        if count:
            words.append(f"{row.label} {count:,} of {sum(run[total_key] for run in row.runs):,}")
    return ", ".join(words)


def make_cut_notes(group: ScoreGroup) -> list[str]:
    """Below a table: rows with answers that were cut before their end."""
    rows = count_answers(group, "cut_answers", "n")
    if not rows:
        return []
    return [f"Answers cut at evaluate.max_new_tokens, scored as they stand: {rows}."]


def make_verdict_notes(group: ScoreGroup) -> list[str]:
    """Below a table: rows whose judge has said something else than a score."""
    rows = count_answers(group, "unreadable_verdicts", "verdicts")
    if not rows:
        return []
    return [f"Verdicts of the judge without a score from 0 to 1, counted as 0: {rows}."]


def make_notes(group: ScoreGroup) -> list[str]:
    """What stands below a table."""
    notes = [*make_blind_notes(group), *make_cut_notes(group), *make_verdict_notes(group)]
    if any(read_efficiency(row).get(PRUNED_TOKENS) is not None for row in group.rows):
        notes.append(
            "Visual tokens in brackets: what a pruner leaves of them, on average over the LLM's layers."
        )
    return notes


def read_efficiency(row: ScoreRow) -> Mapping[str, Any]:
    """What metrics.json tells of a row's cost; nothing of chance, which has no model."""
    efficiency: Mapping[str, Any] = row.runs[0].get("efficiency", {})
    return efficiency


def format_visual_tokens(row: ScoreRow) -> str:
    """Visual tokens before the LLM and, behind a pruner, in brackets what it leaves of them on average."""
    efficiency = read_efficiency(row)
    words = str(efficiency.get("visual_tokens", ""))
    pruned_tokens = efficiency.get(PRUNED_TOKENS)
    if pruned_tokens is not None:
        words += f" ({pruned_tokens:.1f})"
    return words


def format_mean_duration(row: ScoreRow) -> str:
    """Mean time of a cell with all its stages, shared ones included: 3:25 (minutes) or 1.2 h."""
    if not row.seconds:
        return ""
    seconds = round(sum(row.seconds) / len(row.seconds))
    if seconds < 3600:
        return f"{seconds // 60}:{seconds % 60:02d}"
    return f"{seconds / 3600:.1f} h"


def make_score_lines(group: ScoreGroup) -> list[list[str]]:
    """Header and rows as words; families without ±, they are in the CSV."""
    families = list_question_families(group)
    lines = [["", "visual tokens", "query tokens", "overall", *families]]
    for row in group.rows:
        label = row.label
        if len(row.runs) > 1:
            label += f" ({len(row.runs)} seeds)"
        mean, spread = average_row_score(row, None)
        overall = f"{mean:.1f}"
        if row.label != CHANCE_ROW:
            overall += f" ±{spread:.1f}"
        words = [label]
        words.append(format_visual_tokens(row))
        words.append(str(read_efficiency(row).get("query_tokens", "")))
        words.append(overall)
        for family in families:
            words.append(f"{average_row_score(row, family)[0]:.1f}")
        lines.append(words)
    return lines


def make_screen_tables(group: ScoreGroup, width: int) -> list[Table]:
    """For a screen, with the time each row took; a narrow one gets the families in a table of their own."""
    rows = make_score_lines(group)
    times = ["time", *map(format_mean_duration, group.rows)]
    for words, time in zip(rows, times):
        words.append(time)
    caption = "\n".join([SCORE_NOTE, *make_notes(group)])
    if sum(measure_whole_columns(rows)) < width or not list_question_families(group):
        return make_word_tables(rows, width, title=group.title, caption=caption)
    summary = []
    by_family = []
    for label, *numbers, time in rows:
        summary.append([label, *numbers[: SUMMARY_COLUMNS - 1], time])
        by_family.append([label, *numbers[SUMMARY_COLUMNS - 1 :]])
    summary_tables = make_word_tables(summary, width, title=group.title)
    return [*summary_tables, *make_word_tables(by_family, width, caption=caption)]


def format_score_markdown(groups: Sequence[ScoreGroup]) -> str:
    """The same rows without times, so that the same results give the same bytes."""
    lines = []
    for group in groups:
        lines += [
            f"### {escape_markdown(group.title)}",
            "",
            *format_markdown_table(make_score_lines(group)),
            "",
        ]
        for note in make_notes(group):
            lines.append(f"{escape_markdown(note)}\n")
    return "\n".join([*lines, SCORE_NOTE, ""])


def name_family_column(family: str, columns: Container[str]) -> str:
    """What the column of a family's scores is called, which may have the name of another column."""
    return f"family {family}" if family in columns else family


def make_score_records(groups: Sequence[ScoreGroup]) -> list[dict[str, Any]]:
    """Every score in % with its ±, a record a row; all have the same keys, nan where a row has no such
    questions."""
    all_families: set[str] = set()
    for group in groups:
        all_families.update(list_question_families(group))
    records = []
    for group in groups:
        for row in group.rows:
            efficiency = read_efficiency(row)
            record: dict[str, Any] = {
                "questions": group.questions,
                "row": row.label,
                "seeds": len(row.runs),
                "n": row.runs[0]["n"],
                "visual_tokens": efficiency.get("visual_tokens"),
                "query_tokens": efficiency.get("query_tokens"),
            }
            record["overall"], record["overall_pm"] = average_row_score(row, None)
            for family in sorted(all_families):
                name = name_family_column(family, record)
                record[name], record[f"{name}_pm"] = average_row_score(row, family)
            records.append(record)
    return records


def format_score_csv(groups: Sequence[ScoreGroup]) -> str:
    """Every score with its ±, one line a row, for programs."""
    records = make_score_records(groups)
    lines: list[list[object]] = [list(records[0])]
    for record in records:
        words = list(record.values())
        scores = [f"{score:.3f}" for score in words[SCORES_AFTER:]]
        tokens = ["" if count is None else str(count) for count in words[SCORES_AFTER - 2 : SCORES_AFTER]]
        lines.append([*words[: SCORES_AFTER - 2], *tokens, *scores])
    return format_csv(lines)
