"""From finished cells to outcomes: which questions each row of a table answered right at each seed."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ablations import earlier, looks_file, plain_sweeps
from ablations.claims import spec
from ablations.claims.spec import Claim
from ablations.costs import measured, prefill
from ablations.earlier import EarlierReport
from ablations.finished import (
    FinishedCell,
    fill_questions,
    find_finished_cell,
    load_outcomes,
    read_efficiency,
)
from ablations.outcomes import TRAINING_SEED, Report, ReportRow, ReportTable
from ablations.provenance import collect_provenance
from ablations.references import add_references
from ablations.writing import maps
from compressors.errors import UsageError
from compressors.key_value import join_settings, quote_text
from experiments.config import table_files, tables
from experiments.config.cells import Cell, make_blind_cells
from experiments.config.metric_names import describe_metrics
from experiments.config.presets import read_yaml
from experiments.config.schema import Config
from experiments.config.trained import CONFIG_FILE
from experiments.runtime.progress import Reporter
from experiments.store.plan import TRAINING_ROLES, plan_stages
from experiments.store.results import identify_questions
from experiments.store.store import Store
from experiments.sweep.studies import find_study_folder

NO_IMAGE_BLOCK = "no image"
COUNTS_FILE = "prefill.json"
FIRST_SEEDS = ["0", "1", "2"]  # what a report asks for where nothing has finished
CELL_FOLDER = re.compile(r"_seed=(\d+)-\w+$")  # the end of its name, as publish_cell writes it


class CollectedRow(NamedTuple):
    """A row, and the configuration of its first finished cell, which its cost is counted for."""

    row: ReportRow
    config: Config


class CollectedTable(NamedTuple):
    """A table, its finished cells, and its rows that have any."""

    table: ReportTable
    finished_cells: list[FinishedCell]
    finished_rows: list[CollectedRow]


def collect_report(
    wanted: Sequence[str],
    axes: Mapping[str, list[str]],
    store: Store,
    folder: Path,
    command: str,
    measuring: Reporter | None = None,
    earlier_folder: Path | None = None,
    baseline: str | None = None,
) -> Report:
    """Tables by name or path, or of the sweep that `axes` describe where none is wanted, from what is
    finished below `store`, and from the earlier report in `earlier_folder`. In `folder` counted FLOPs,
    measured times and drawn maps are kept from one report to the next. `measuring`: measure them now.
    `rows` among the axes: of tables these rows alone.
    `baseline`: the row that others are compared with; without it a sweep's rows alone are. UsageError for a
    table's settings with several values, but for seeds."""
    axes = dict(axes)
    row_labels = tables.take_row_labels(axes, wanted)
    if wanted:
        check_single_values(axes)
    earlier_report = earlier.read_earlier_report(earlier_folder)
    reported_folders = [folder]
    if earlier_folder is not None:
        reported_folders.append(find_study_folder(earlier_folder))
    looks_before = looks_file.collect_looks(reported_folders)
    axes = {"seed": find_finished_seeds(store.root, earlier_report), **axes}
    sweep_axes = dict(axes)
    if earlier_folder is not None:
        sweep_axes["earlier"] = [str(earlier_folder)]

    report_tables: list[ReportTable] = []
    unknown_baselines: list[UsageError] = []
    finished_cells: dict[str, FinishedCell] = {}  # by key: tables share cells
    finished_rows: list[CollectedRow] = []
    for file, claims in load_tables(wanted, axes, store, row_labels):  # all of them, before cells are read
        collected = collect_table(file, claims, store, earlier_report)
        collected.table.claims = looks_file.recall_looks_before(collected.table, looks_before)
        collected.table.sweep = format_sweep_command(file if wanted else None, sweep_axes)
        if not wanted:
            for row in collected.table.rows:
                row.block = ""  # no image: a row like the others, as in the sweep's own table
        if baseline is not None or not wanted:
            try:
                add_references(collected.table, collected.finished_rows, baseline)
            except UsageError as error:
                unknown_baselines.append(error)
        report_tables.append(collected.table)
        for finished_cell in collected.finished_cells:
            finished_cells[finished_cell.stage.key] = finished_cell
        finished_rows += collected.finished_rows
    if unknown_baselines and not any(table.baseline for table in report_tables):
        raise unknown_baselines[0]  # one table may have what another has not

    add_counted_flops(finished_rows, folder / COUNTS_FILE)
    provenance = collect_provenance(list(finished_cells.values()), store, earlier_report)
    report = Report(report_tables, {"command": command, **provenance})
    measured.add_measured_columns(report, finished_rows, folder, measuring)
    evaluations = [(finished_cell.cell, finished_cell.stage) for finished_cell in finished_cells.values()]
    maps.add_maps(report, evaluations, store, folder, earlier_report.report)
    return report


def check_single_values(axes: Mapping[str, list[str]]) -> None:
    """UsageError for a setting of a table with several values, but for seeds."""
    for key, values in axes.items():
        if len(values) > 1 and key != "seed":
            raise UsageError(f"{key}={','.join(values)}: a report takes one value; make one for each")


def find_finished_seeds(root: Path, earlier_report: EarlierReport) -> list[str]:
    """The seeds that any cell below an output directory, or of an earlier report, has finished at."""
    seeds = set(earlier_report.finished_seeds)
    for folder in plain_sweeps.list_cell_folders(root):
        match = CELL_FOLDER.search(folder.name)
        if match:
            seeds.add(match[1])
        else:
            seeds |= read_seed(folder / CONFIG_FILE)
    return sorted(seeds, key=int) or FIRST_SEEDS


def read_seed(settings_file: Path) -> set[str]:
    """The seed of a cell whose folder somebody has renamed; none of a damaged one."""
    try:
        seed = read_yaml(settings_file).get("seed")
    except UsageError:  # which is told where its row is made
        return set()
    return {str(seed)} if isinstance(seed, int) else set()


def load_tables(
    wanted: Sequence[str], axes: Mapping[str, list[str]], store: Store, row_labels: Sequence[str] | None
) -> list[tuple[tables.TableFile, tuple[Claim, ...]]]:
    """Tables with their claims, also those on rows that `row_labels` leaves out; those of a sweep, which has
    none, where no table is wanted."""
    if not wanted:
        return [(file, ()) for file in plain_sweeps.make_sweep_tables(axes, store)]
    files = tables.load_table_files(wanted, axes, row_labels)
    claims = {file.name: spec.read_claims(file) for file in files}
    return [(file, claims[file.name]) for file in tables.select_rows(files, row_labels)]


def format_sweep_command(file: tables.TableFile | None, axes: Mapping[str, list[str]]) -> str:
    """The command that runs a table's cells, or those of a sweep without one."""
    words = join_settings(axes)
    if file is not None:
        table_axes = {"table": [table_files.spell_table(file.name, file.path)]}
        if file.left_out:
            table_axes["rows"] = [quote_text(row.label) for row in file.rows if not row.absent]
        words = join_settings({**table_axes, **axes})
    return f"python -m experiments.sweep {shlex.join(words)}"


def collect_table(
    file: tables.TableFile, claims: tuple[Claim, ...], store: Store, earlier_report: EarlierReport
) -> CollectedTable:
    """One table from the cells of it that have finished; a blind row, which a sweep adds by itself at its
    first seed, with each seed that one of its cells has."""
    cells: list[Cell] = []
    for table_row in file.rows:
        cells += table_row.cells
    own_blind_keys = {plan_stages(cell.config).key for cell in cells if cell.config.blind}
    blind_rows = []
    seeds = sorted({cell.config.seed for cell in cells})
    for cell in make_blind_cells(cells):
        blind_cells = []
        for seed in seeds:
            seeded_cell = replace(cell, config=replace(cell.config, seed=seed))
            if plan_stages(seeded_cell.config).key not in own_blind_keys:
                blind_cells.append(seeded_cell)
        if blind_cells:
            blind_rows.append(tables.TableRow(NO_IMAGE_BLOCK, cell.label, "", tuple(blind_cells)))

    rows = []
    pairs = []
    for table_row in [*blind_rows, *file.rows]:
        row = ReportRow(table_row.block, table_row.label, table_row.ours, absent=table_row.absent)
        rows.append(row)
        for cell in table_row.cells:
            finished_cell = find_finished_cell(cell, store, earlier_report)
            if finished_cell is not None:
                pairs.append((row, finished_cell))
            # nobody asked for blind cells; and a knob that is not used makes a cell twice
            elif row.block != NO_IMAGE_BLOCK and cell.config.seed not in row.missing:
                row.missing.append(cell.config.seed)

    table = ReportTable(file.name, file.heading, file.title, claims, rows, left_out=file.left_out)
    finished_rows = []
    if pairs:
        finished_rows = fill_rows(table, pairs, store)
    # nobody asked for a blind row, so one without results is not missing
    table.rows = [row for row in rows if row.block != NO_IMAGE_BLOCK or row.outcomes]
    finished_cells = [finished_cell for _, finished_cell in pairs]
    return CollectedTable(table, finished_cells, finished_rows)


def fill_rows(
    table: ReportTable, pairs: Sequence[tuple[ReportRow, FinishedCell]], store: Store
) -> list[CollectedRow]:
    """Put outcomes and efficiency of finished cells into their rows; the rows, the last first. UsageError for
    rows that answer other questions than the first, and for a row with two cells at one seed."""
    first_row, first_cell = pairs[0]
    fill_questions(table, first_cell, store)
    metric_words = describe_metrics(first_cell.cell.config.evaluate.metric)
    if metric_words:
        table.title = f"{table.title} ({metric_words})".strip()
    first_pairs: list[tuple[ReportRow, FinishedCell]] = []  # a row and its first cell
    for row, finished_cell in pairs:
        if identify_questions(finished_cell.stage) != identify_questions(first_cell.stage):
            raise UsageError(
                f"{table.heading}, row '{row.label}': answers other questions than row "
                f"'{first_row.label}'; rows of a table have the same data.test, data.seed and evaluate.metric"
            )
        seed = finished_cell.cell.config.seed
        if row.keys.get(seed, finished_cell.stage.key) != finished_cell.stage.key:
            raise UsageError(
                f"{table.heading}, row '{row.label}': two cells with other settings have seed={seed} and one "
                "label; give each a row of its own"
            )
        if not row.outcomes:
            first_pairs.append((row, finished_cell))
        row.outcomes[seed] = load_outcomes(finished_cell, store, table)
        row.keys[seed] = finished_cell.stage.key
        row.training = row.training or list_training_keys(finished_cell)

    finished_rows = []
    for row, finished_cell in reversed(first_pairs):
        row.efficiency = read_efficiency(finished_cell, store)
        finished_rows.append(CollectedRow(row, finished_cell.cell.config))
    return finished_rows


def list_training_keys(finished_cell: FinishedCell) -> tuple[str, ...]:
    """The keys of the training stages that a cell would need at one seed, in order: they tell which stages
    rows share, and rows of one report from those of another, whatever has finished."""
    evaluation = finished_cell.stage
    if finished_cell.cell.config.seed != TRAINING_SEED:
        evaluation = plan_stages(replace(finished_cell.cell.config, seed=TRAINING_SEED))
    keys = []
    for key, stage in evaluation.collect_stages().items():
        if stage.kind in TRAINING_ROLES:
            keys.append(key)
    return tuple(keys)


def add_counted_flops(rows: Sequence[CollectedRow], counts_file: Path) -> None:
    """Give rows the FLOPs of a prefill; none where a model's configuration is out of reach."""
    configs = [config for _, config in rows]
    counts = prefill.look_up_counts(configs, counts_file)
    for (row, _), flops in zip(rows, counts):
        if flops is not None:
            row.efficiency["prefill_flops"] = flops
