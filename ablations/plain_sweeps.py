"""Rows of a sweep that no table names: what its settings make, or all that has finished below `out=`."""

from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from compressors.errors import UsageError
from compressors.key_value import join_settings
from compressors.setting_fields import collect_settings, format_value
from experiments.config import signatures
from experiments.config.cell_checks import check_parts
from experiments.config.cells import Cell, copy_section, make_cells, projects_itself
from experiments.config.metric_names import check_judge_settings
from experiments.config.overrides import parse_value
from experiments.config.presets import flatten_mapping, read_yaml
from experiments.config.schema import Config
from experiments.config.settings import assign_setting, conform_setting
from experiments.config.tables import Axes, TableFile, TableRow
from experiments.config.trained import CELLS_FOLDER, CONFIG_FILE, read_stage_names
from experiments.store.plan import plan_stages
from experiments.store.results import identify_questions
from experiments.store.store import Store
from llm_adapters.saved import STAGES_FILE

SWEEP_NAME = "sweep"
CHOOSING_AXES = {"seed", "out"}  # they choose among finished cells, others describe a sweep


def make_sweep_tables(axes: Axes, store: Store) -> list[TableFile]:
    """A table for each set of questions that a sweep's cells answer. The cells are those that the settings
    make, as for `experiments.sweep`, or all finished ones where no more than seeds are given."""
    if axes.keys() <= CHOOSING_AXES:
        cells = read_finished_cells(store, axes["seed"])
        title = f"Cells below {store.root}"
    else:
        cells = make_cells(axes)
        title = title_sweep(axes)
    cells_by_questions: dict[str, list[Cell]] = {}
    for cell in cells:
        cells_by_questions.setdefault(identify_questions(plan_stages(cell.config)), []).append(cell)
    tables = []
    for number, alike_cells in enumerate(cells_by_questions.values(), 1):
        name = SWEEP_NAME
        table_title = title
        if len(cells_by_questions) > 1:
            name = f"{SWEEP_NAME}-{number}"
            table_title = f"{title}, {', '.join(alike_cells[0].config.data.test)}"
        tables.append(TableFile(name, table_title, Path(name), tuple(group_rows(alike_cells))))
    return tables


def title_sweep(axes: Axes) -> str:
    """What a sweep compares, else all of its settings; the report says its whole command below."""
    settings = {key: values for key, values in axes.items() if key not in CHOOSING_AXES}
    compared = {key: values for key, values in settings.items() if len(values) > 1}
    return " ".join(join_settings(compared or settings))


def group_rows(cells: Sequence[Cell]) -> list[TableRow]:
    """Cells that differ in the seed alone are a row."""
    cells_by_row: dict[Any, list[Cell]] = {}
    for cell in cells:
        cells_by_row.setdefault((cell.label, cell.row), []).append(cell)
    return [TableRow("", row[0].label, "", tuple(row)) for row in cells_by_row.values()]


# ---- finished cells ----


def list_cell_folders(root: Path) -> list[Path]:
    """The folders of the published cells below an output directory, whatever they are called."""
    folders = set()
    for name in (CONFIG_FILE, STAGES_FILE):  # one of the two may have been removed
        for path in (root / CELLS_FOLDER).glob(f"*/{name}"):
            folders.add(path.parent)
    return sorted(folders)


def read_finished_cells(store: Store, seeds: Sequence[str]) -> list[Cell]:
    """The published cells below an output directory at these seeds, blind ones aside, which a report adds by
    itself. A warning for those whose settings, data or code are not what they were; UsageError for what is no
    seed."""
    wanted_seeds = {conform_setting("seed", parse_value(text, "seed")) for text in seeds}
    configs: dict[str, Config] = {}  # by key: one cell may be published under several labels
    for folder in list_cell_folders(store.root):
        try:
            config = read_config(folder / CONFIG_FILE)
            # it may have been moved since, with the cells that others start from
            config.out = str(store.root)
            stage = plan_stages(config)
            is_as_it_was = stage.name in read_stage_names(folder)
        except UsageError as error:
            store.report.write_warning(f"{folder} is left out: {error}")
            continue
        if not is_as_it_was:
            store.report.write_warning(
                f"{folder} is left out: its settings, data or code are not what they were any more"
            )
            continue
        if not config.blind and config.seed in wanted_seeds:
            configs[stage.key] = config
    return label_configs(list(configs.values()))


def read_config(path: Path) -> Config:
    """The settings of a published cell. UsageError for what is no setting, or no value of it."""
    content = read_yaml(path)
    parts = content.pop("parts", {})
    config = Config()
    known_settings = collect_settings(Config)
    for setting, value in flatten_mapping(content):
        if setting not in known_settings:
            raise UsageError(f"{path}: unknown setting '{setting}'")
        assign_setting(config, setting, conform_setting(setting, value))
    check_parts(config)
    for part, knobs in parts.items():
        for registry in signatures.registries():
            if part in registry.names() and knobs.keys() <= registry.knobs(part).keys():
                config.parts[part] = registry.check(part, **knobs)
    if config.parts.keys() != parts.keys():
        raise UsageError(f"{path}: unknown knobs in parts: {parts}")
    return config


def label_configs(configs: Sequence[Config]) -> list[Cell]:
    """Cells called by their compressor, and by what tells rows of one compressor apart."""
    configs_by_name: dict[str, list[Config]] = {}
    for config in configs:
        configs_by_name.setdefault(config.compressor, []).append(config)
    cells = []
    for name, alike in configs_by_name.items():
        for config, settings in zip(alike, list_telling_settings(alike)):
            words = [f"{path}={value}" for path, value in settings.items()]
            label = " ".join([name, *words])
            cells.append(Cell(config, label, (("", label),)))
    return sorted(cells, key=lambda cell: (cell.label, cell.config.seed))


# ---- what tells rows apart ----


def list_telling_settings(configs: Sequence[Config]) -> list[dict[str, str]]:
    """Of each row the settings that tell it from the others, as typed: those whose values differ, where its
    results follow from them."""
    rows = [list_settings(config) for config in configs]
    differing = find_differing_settings(rows)
    telling_settings: dict[Any, dict[str, str]] = {}  # by all settings: seeds of a row are planned once
    for config, settings in zip(configs, rows):
        row = tuple(settings.items())
        if row in telling_settings:
            continue
        telling_settings[row] = {}
        for path in differing:
            if path in settings and is_followed_from(config, path, configs):
                telling_settings[row][path] = settings[path]
    return [telling_settings[tuple(settings.items())] for settings in rows]


def is_followed_from(config: Config, path: str, configs: Sequence[Config]) -> bool:
    """Whether a cell's results would be others with the default of a setting in its place, or, where it has
    that, with the value of another cell."""
    if path not in collect_settings(Config):
        return True  # a knob, all of which are in keys
    read_value = attrgetter(path)
    value = read_value(config)
    other_value = collect_settings(Config)[path].default
    if value == other_value:
        other_value = next(candidate for candidate in map(read_value, configs) if candidate != value)
    changed_config = copy_section(config)
    assign_setting(changed_config, path, other_value)
    try:
        check_judge_settings(changed_config)
        return plan_stages(changed_config).key != plan_stages(config).key
    except UsageError:  # the cell could not be without its value
        return True


def list_settings(config: Config) -> dict[str, str]:
    """All settings of a row, as typed, with all knobs of its parts: PART.KNOB."""
    settings = {}
    for path in collect_settings(Config):
        if path not in CHOOSING_AXES:
            settings[path] = format_value(attrgetter(path)(config))
    if config.blind:
        return settings
    parts = [
        (signatures.compressors(), config.compressor_name),
        (signatures.projectors(), find_projector(config)),
        (signatures.query_modules(), config.query_module),
        (signatures.compressors(), config.evaluate.compressor),
        (signatures.pruners(), config.prune),
    ]
    for registry, part in parts:
        if part:
            for knob, value in registry.settled(part, config.knobs(part)).items():
                settings[f"{part}.{knob}"] = format_value(value)
    return settings


def find_projector(config: Config) -> str | None:
    """The projector whose knobs a cell has; None behind a compressor that projects itself."""
    if config.projector == "auto" and projects_itself(config):
        return None
    return config.projector_name


def find_differing_settings(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The settings whose values differ among the rows that have them, in order."""
    values_by_path: dict[str, set[str]] = {}
    for settings in rows:
        for path, value in settings.items():
            values_by_path.setdefault(path, set()).add(value)
    return [path for path, values in values_by_path.items() if len(values) > 1]
