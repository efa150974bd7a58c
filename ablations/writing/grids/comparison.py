"""Tables of rows that are compared: with a baseline and the uncompressed model, by family, by settings."""

from collections.abc import Sequence
from shlex import quote

from ablations.claims.spec import Claim
from ablations.claims.statistics import compute_seed_interval
from ablations.claims.verdicts import Verdict
from ablations.outcomes import ReportRow, ReportTable
from ablations.writing.grids.claims_grid import judge_table
from ablations.writing.grids.number_words import (
    ONE_SEED_MARK,
    ONE_SEED_NOTE,
    format_interval,
    format_signed,
)
from ablations.writing.grids.scores_grid import (
    find_efficiency_columns,
    format_overall,
    list_table_notes,
    make_chance_line,
    mark_label,
    name_state,
)
from ablations.writing.grids.word_grid import WordGrid

ONE_PICTURE_MARK = "**"
LABEL_SETTING = "compressor"  # which a row's label says


def make_comparison_grid(table: ReportTable, title: str) -> WordGrid:
    """Accuracy of each row, its difference to the baseline, its share of the uncompressed model, its cost."""
    columns = find_efficiency_columns(table)
    differences = judge_differences(table)
    has_uncompressed = any(row.uncompressed for row in table.rows)
    header = ["", "seeds", "overall", f"difference to {table.baseline}", "95 % interval"]
    if has_uncompressed:
        header.append("% of uncompressed")
    blank = [""] * (len(header) - 3)
    header += [column.heading for column in columns]
    lines = []
    if table.chance:
        label, seeds, overall, *_ = make_chance_line(table, [])
        lines.append(("", [label, seeds, overall, *blank, *[""] * len(columns)]))
    for row in table.rows:
        words = [mark_label(row), str(len(row.outcomes) or ""), name_state(row)]
        if row.outcomes:
            words[2] = format_overall(table, row)
        words += format_difference(row, differences.get(row.label))
        if has_uncompressed:
            words.append(format_uncompressed_share(table, row))
        words += [column.spell(row) for column in columns]
        lines.append((row.block, words))
    notes = [*list_comparison_notes(table, differences), *list_table_notes(table)]
    return WordGrid(title, header, lines, notes, find_best(table, lines, [2]))


def make_families_grid(table: ReportTable) -> WordGrid:
    """Accuracy of each row by family of questions."""
    lines = []
    if table.chance:
        label, _, *accuracies = make_chance_line(table, [])
        lines.append(("", [label, *accuracies]))
    for row in table.rows:
        if row.outcomes:
            words = [row.label]
            for family in (None, *table.family_names):
                words.append(f"{compute_seed_interval(table.compute_accuracies(row, family))[0]:.1f}")
            lines.append((row.block, words))
    header = ["", "overall", *table.family_names]
    best = find_best(table, lines, range(1, len(header)))
    return WordGrid(f"{table.heading}: by family of questions", header, lines, [], best)


def make_settings_grid(table: ReportTable) -> WordGrid | None:
    """The settings that tell the rows apart, a column each; None where labels say it all."""
    paths: dict[str, None] = {}  # a set that keeps its order
    for row in table.rows:
        paths |= dict.fromkeys(row.settings)
    if all(row.settings.get(LABEL_SETTING, row.label) == row.label for row in table.rows):
        paths.pop(LABEL_SETTING, None)
    if not paths:
        return None
    lines = []
    for row in table.rows:
        if row.settings:
            lines.append((row.block, [row.label, *(row.settings.get(path, "") for path in paths)]))
    note = "All other settings are the same; empty: a knob of a part that the row does not have."
    return WordGrid(f"{table.heading}: settings that differ", ["", *paths], lines, [note])


def judge_differences(table: ReportTable) -> dict[str, Verdict]:
    """Row label -> its difference to its baseline with the interval, judged together, so that each is
    moderated by what the others show."""
    claims = []
    labels = {row.label for row in table.rows if row.outcomes}
    for row in table.rows:
        if row.outcomes and row.baseline in labels and row.baseline != row.label:
            claims.append(Claim(row.label, "", "better", ((row.label, row.baseline),)))
    differences = {}
    for verdict in judge_table(table, claims):
        if verdict.pairs:  # two rows may share no seed
            differences[verdict.claim.text] = verdict
    return differences


def format_difference(row: ReportRow, difference: Verdict | None) -> list[str]:
    """The difference and its interval, which is marked where it tells nothing of seeds."""
    if row.baseline == row.label:
        return ["baseline", ""]
    if difference is None:
        return ["", "no seed in common" if row.baseline and row.outcomes else ""]
    words = [format_signed(difference.estimate), format_interval(difference)]
    pair = difference.pairs[0]
    if pair.pictures < 2:  # nothing is known of another picture, nor of another question
        words[1] = ONE_PICTURE_MARK
    elif pair.low == pair.high:  # which is no interval
        words[1] = "no question differs" if pair.low == 0 else ""
    elif pair.squares is None:
        words[1] += ONE_SEED_MARK
    return words


def format_uncompressed_share(table: ReportTable, row: ReportRow) -> str:
    """A row's accuracy in % of that of its uncompressed row, at the seeds that both have; nothing where they
    share none."""
    for uncompressed in table.rows:
        if uncompressed.label == row.uncompressed:
            seeds = row.outcomes.keys() & uncompressed.outcomes.keys()
            whole = sum(table.compute_accuracies(uncompressed, seeds=seeds))
            if whole:
                return f"{100 * sum(table.compute_accuracies(row, seeds=seeds)) / whole:.1f}"
    return ""


def find_best(
    table: ReportTable, lines: Sequence[tuple[str, list[str]]], columns: Sequence[int]
) -> set[tuple[int, int]]:
    """(line, column) of the highest numbers, as printed, among rows that compress; none with a single one,
    or where all are equal."""
    compressing = set()
    for row in table.rows:
        # a blind row has neither settings nor a baseline
        if row.uncompressed != row.label and (row.settings or row.baseline):
            compressing.add(mark_label(row))
    numbers = [number for number, (_, words) in enumerate(lines) if words[0] in compressing]
    best: set[tuple[int, int]] = set()
    if len(numbers) < 2:
        return best
    for column in columns:
        values = {}
        for number in numbers:
            values[number] = float(lines[number][1][column].partition(" ")[0])
        highest = max(values.values())
        if highest == min(values.values()):
            continue
        for number, value in values.items():
            if value == highest:
                best.add((number, column))
    return best


def list_comparison_notes(table: ReportTable, differences: dict[str, Verdict]) -> list[str]:
    """What the columns of a comparison say."""
    notes = [
        f"Differences to {table.baseline} in points, at the seeds that both rows have; baseline=ROW compares "
        "with another. Bold: the best of the rows that compress."
    ]
    own_baselines = [row.label for row in table.rows if row.outcomes and row.baseline == row.label]
    if len(own_baselines) > 1:
        notes.append(
            f"{len(own_baselines)} baselines: a row is compared with the one that has its other settings; "
            f"{quote(f'baseline={own_baselines[0]}')} compares all with one."
        )
    pairs = [difference.pairs[0] for difference in differences.values()]
    if any(pair.pictures < 2 for pair in pairs):
        notes.append(
            f"{ONE_PICTURE_MARK} All questions are about one picture: an interval needs several; raise "
            "evaluate.limit, or leave it out."
        )
    if any(pair.squares is None and pair.pictures > 1 for pair in pairs):
        notes.append(ONE_SEED_NOTE)
    if any(row.uncompressed for row in table.rows):
        notes.append("% of uncompressed: of what compressor=identity scores at the same seeds.")
    partnerless = [row.label for row in table.rows if row.settings and not row.baseline]
    if partnerless:
        notes.append(f"No single row of {table.baseline} has the settings of {', '.join(partnerless)}.")
    return notes
