"""From overrides to cells: defaults < preset < what it says a compressor wants < command line.

Every knob is checked against its part's signature.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

from compressors.errors import UsageError
from compressors.key_value import unquote_text
from compressors.setting_fields import format_value
from experiments.config import signatures
from experiments.config.cell_checks import (
    QUERY_MODULE_SETTINGS,
    check_batches,
    check_data_weights,
    check_parts,
    check_query_module_settings,
    check_streaming,
    check_validation,
    switch_off_query_module_settings,
)
from experiments.config.idle_settings import (
    Requirement,
    find_idle_settings,
    find_missing_requirement,
    says_nothing,
)
from experiments.config.metric_names import check_judge_settings, check_metric_names
from experiments.config.overrides import combine_axes, parse_override
from experiments.config.presets import load_preset
from experiments.config.scaling import read_widths
from experiments.config.schema import BLIND_COMPRESSOR, Config
from experiments.config.settings import assign_setting
from experiments.config.trained import check_starts

BLIND_ROW = "blind"  # how the rows that a sweep adds by itself begin
BLIND_SECTIONS = ("data", "llm", "prompt", "evaluate", "judge")  # what a cell without image depends on

Section = TypeVar("Section")
# everything that tells a row from others: overrides, with the label first
RowKey = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """One run: its configuration and what its row is called. Cells that differ in the seed share a row."""

    config: Config
    label: str
    row: RowKey


def make_cells(axes: Mapping[str, list[str]]) -> list[Cell]:
    """The product of the axes. A cell ignores knobs of parts it lacks, and settings that act on nothing in
    it; one that no cell uses is an error."""
    cells, unused_paths = make_labelled_cells(axes, "")
    refuse_unused_paths(unused_paths, axes, cells)
    return cells


def make_labelled_cells(
    axes: Mapping[str, list[str]], label: str, complete: Callable[[Config], Mapping[str, str]] | None = None
) -> tuple[list[Cell], set[str]]:
    """The product of a row's axes, and the knobs and settings among them that none of its cells uses.
    `complete` gives overrides that follow from a cell's configuration."""
    cells: list[Cell] = []
    idle_sets: list[set[str]] = []
    for overrides in combine_axes(dict(axes)):
        config, idle_paths = resolve_overrides(overrides)
        if complete is not None:
            overrides = {**overrides, **complete(config)}
            config, idle_paths = resolve_overrides(overrides)
        idle_sets.append(idle_paths)
        row = [("", label)]
        for path, text in overrides.items():
            if path != "seed" and path not in idle_paths:
                row.append((path, text))
        cell_label = label_cell(axes, overrides, label, config, idle_paths)
        cells.append(Cell(config, cell_label, tuple(row)))
    # a product has one combination at least, so there is a set to begin with
    return cells, set.intersection(*idle_sets)


def label_cell(
    axes: Mapping[str, list[str]],
    overrides: Mapping[str, str],
    label: str,
    config: Config,
    idle_paths: set[str],
) -> str:
    """What a cell's row is called: the row's own label, the compressor where that does not say it, and
    whatever varies."""
    words: list[str] = []
    if label:
        words.append(label)
    if not label or len(axes.get("compressor", ())) > 1:
        words.append(config.compressor)
    for path, values in axes.items():
        # the seed is no row of its own, the compressor is named already, what is idle changes nothing
        if len(values) > 1 and path not in ("seed", "compressor") and path not in idle_paths:
            words.append(f"{path}={overrides[path]}")
    return " ".join(words)


def resolve_overrides(overrides: Mapping[str, str]) -> tuple[Config, set[str]]:
    """The configuration of a combination of overrides, and which of them it has no use for."""
    preset = load_preset(unquote_text(overrides.get("preset", "tiny")))
    config = copy_section(preset.config)
    asked_parts = list_asked_parts(config, overrides)
    overridden_knobs: dict[str, object] = {}
    for path, text in overrides.items():
        if path == "preset":
            continue
        override = parse_override(path, text, asked_parts)
        if override.is_setting:
            assign_setting(config, path, override.value)
        else:
            overridden_knobs[path] = override.value
    parts = check_parts(config)
    for path, value in preset.wants.get(config.compressor_name, {}).items():
        if path not in overrides:
            assign_setting(config, path, value)
    check_batches(config)
    check_streaming(config, overrides)
    check_starts(config)
    check_data_weights(config)
    check_validation(config)
    check_metric_names(config.evaluate.metric)
    check_judge_settings(config)
    check_query_module_settings(config, overrides)

    knobs = {part: dict(values) for part, values in preset.knobs.items()}
    idle_paths = find_idle_settings(config, overrides)
    for path, value in overridden_knobs.items():
        part, knob = path.split(".", 1)
        if part in parts:
            knobs.setdefault(part, {})[knob] = value
        else:
            idle_paths.add(path)
    # sorted: the same cell, however its command line was ordered
    config.parts = {part: knobs[part] for part in sorted(parts) if knobs.get(part)}
    if config.projector == "auto" and not settle_projector(config):
        idle_paths |= {path for path in overridden_knobs if path.startswith(f"{config.projector_name}.")}
    return config, idle_paths


def projects_itself(config: Config) -> bool:
    """Whether the cell's compressor ends at the LLM's width, so that no projector follows."""
    name = config.compressor_name
    return signatures.compressors().find_projects(name, config.knobs(name), partial(read_widths, config))


def settle_projector(config: Config) -> bool:
    """With knobs of its own, the projector that `auto` would take is asked for by name. False where there is
    none: behind a compressor that projects itself."""
    name = config.projector_name
    knobs = config.parts.get(name)
    if knobs is None:
        return True
    projectors = signatures.projectors()
    if projects_itself(config):
        del config.parts[name]
        return False
    if projectors.settled(name, knobs) == projectors.settled(name, {}):
        del config.parts[name]  # `auto` has them
    else:
        config.projector = name
    return True


def list_asked_parts(config: Config, overrides: Mapping[str, str]) -> tuple[str, ...]:
    """The parts that overrides ask for, else a preset's configuration; not checked."""
    parts = overrides.get("compressor", config.compressor).split("+")
    for path, name in (("prune", config.prune), ("projector", config.projector)):
        parts.append(overrides.get(path, name or ""))
    return tuple(parts)


def copy_section(section: Section) -> Section:
    """A configuration that shares nothing with the old one; deepcopy would be most of a large plan's time."""
    copies: dict[str, Any] = {}
    for name, value in vars(section).items():
        if dataclasses.is_dataclass(value):
            copies[name] = copy_section(value)
        else:
            copies[name] = copy.copy(value)
    # there is no public type for "a dataclass"; Config and its sections are
    return dataclasses.replace(cast(Any, section), **copies)


def refuse_unused_paths(unused_paths: set[str], axes: Mapping[str, list[str]], cells: list[Cell]) -> None:
    """UsageError for knobs and settings that no cell has a use for; not for one that is what it would be."""
    missing: dict[str, Requirement | None] = {}  # by path; None of a knob
    for path in unused_paths:
        requirement = find_missing_requirement(cells[0].config, path)
        may_stand = requirement is not None and requirement.may_stand and len(axes[path]) == 1
        if not may_stand and not says_nothing(path, axes[path]):
            missing[path] = requirement
    if not missing:
        return
    path = min(missing)
    value = f"{path}={','.join(axes[path])}"
    requirement = missing[path]
    if requirement is not None:
        raise UsageError(f"{value}: acts on nothing without {requirement.words}; add it, or leave {path} out")
    part = path.split(".")[0]
    compressors = ", ".join(sorted({cell.config.compressor for cell in cells}))
    message = f"{value}: no cell uses '{part}'; compressor={compressors}"
    if part in signatures.pruners().names():
        message += f"; it needs prune={part}"
    raise UsageError(message)


def make_blind_cells(cells: list[Cell]) -> list[Cell]:
    """One cell without any image for each data and language model that `cells` have, at their first seed. Of
    several, each is called by what tells it from the others."""
    configs: dict[str, Config] = {}  # by what a blind cell depends on
    settings: list[dict[str, Any]] = []
    for cell in cells:
        cell_settings = collect_blind_settings(cell.config)
        if str(cell_settings) not in configs:
            configs[str(cell_settings)] = cell.config
            settings.append(cell_settings)
    texts_by_path: dict[str, set[str]] = {}  # the values that a setting has in them
    for cell_settings in settings:
        for path, value in cell_settings.items():
            texts_by_path.setdefault(path, set()).add(str(value))
    varying_paths = [path for path, texts in texts_by_path.items() if len(texts) > 1]

    blind_cells: list[Cell] = []
    for config, cell_settings in zip(configs.values(), settings):
        blind_config = copy_section(config)
        blind_config.compressor = BLIND_COMPRESSOR
        blind_config.projector = "auto"
        blind_config.prune = None
        blind_config.parts = {}
        blind_config.evaluate.scale = None
        blind_config.evaluate.compressor = None
        # there is neither a visual token nor a query module
        switch_off_query_module_settings(blind_config)
        start_blind_training(blind_config, config)
        words = [BLIND_ROW]
        for path in varying_paths:
            words.append(f"{path}={format_value(cell_settings[path])}")
        label = " ".join(words)
        blind_cells.append(Cell(blind_config, label, (("", label), ("preset", config.preset))))
    return blind_cells


def start_blind_training(blind_config: Config, config: Config) -> None:
    """Start a blind cell from the LLM that the cell beside it starts from, and without a teacher, who would
    see images."""
    source = find_llm_start(config)
    blind_config.finetune.init = source
    blind_config.finetune.init_parts = [] if source is None else ["llm"]
    blind_config.pretrain.init = None
    blind_config.finetune.teacher = None


def find_llm_start(config: Config) -> str | None:
    """The trained model that a cell's LLM, and that of the blind cell beside it, starts from; None where it
    starts from `llm.source`."""
    start = config.find_start("finetune")
    return start.source if start is not None and "llm" in start.parts else None


def collect_blind_settings(config: Config) -> dict[str, Any]:
    """The settings that tell one blind cell from another, by their paths."""
    settings: dict[str, Any] = {}
    for section in BLIND_SECTIONS:
        for name, value in vars(getattr(config, section)).items():
            settings[f"{section}.{name}"] = value
    settings["finetune.init"] = find_llm_start(config)
    del settings["data.workers"]  # no result shows these two
    del settings["evaluate.cache"]
    del settings["data.pretrain"]  # of stage 1, which it does not have
    del settings["data.pretrain_weights"]
    del settings["evaluate.scale"]  # of the visual tokens
    del settings["evaluate.compressor"]
    for path in QUERY_MODULE_SETTINGS:
        settings.pop(path, None)
    return settings


def make_training_config(config: Config) -> Config:
    """The cell as stage 2 has it: with the compressor that is trained, at all of its scales, whatever is
    evaluated."""
    evaluate = dataclasses.replace(config.evaluate, compressor=None, scale=None)
    return dataclasses.replace(config, evaluate=evaluate)


def make_alignment_config(config: Config) -> Config:
    """The cell as stage 1 has it: whole images and no query module, so that cells that differ in it share the
    stage."""
    config = make_training_config(config)
    image = dataclasses.replace(config.image, tiles=config.tiles("pretrain"))
    return dataclasses.replace(config, compressor=config.compressor_name, image=image)
