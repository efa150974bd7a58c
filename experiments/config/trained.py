"""Trained models by name: a cell below the output directory, a folder, or a model of the hub."""

import re
from collections.abc import Sequence
from pathlib import Path

from compressors.errors import UnreachableError, UsageError, quote, shorten
from compressors.reading import read_json_file
from compressors.registry import conform, suggest
from compressors.setting_fields import format_value
from connectors.hub import find_folder
from experiments.config.presets import flatten_mapping, read_yaml
from experiments.config.schema import BLIND_COMPRESSOR, Config
from experiments.runtime.memory import remember_for_request
from llm_adapters.saved import MODEL_FOLDER, STAGES_FILE, find_model_folder

CELLS_FOLDER = "cells"  # below the output directory
CONFIG_FILE = "config.yaml"  # the settings of a cell, or what a stage depends on, in its folder
TRAINED_MODEL_SETTINGS = ("pretrain.init", "finetune.init", "finetune.teacher")
LISTED_CELLS = 8  # of those that a name may mean
HUB_ID = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def find_trained_model(source: str, out: str, path: str) -> Path:
    """The folder of a trained model, as `find_model` has it. UsageError, from the setting `path`, where none
    is there."""
    return find_model(source, out, f"{path}={quote(source)}")


def find_teacher(config: Config) -> Path:
    """The folder of the trained model that stage 2 learns from. UsageError where none is there."""
    assert config.finetune.teacher is not None  # asked for by the caller
    return find_trained_model(config.finetune.teacher, config.out, "finetune.teacher")


def find_model(source: str, out: str | Path, where: str) -> Path:
    """The folder of a trained model: `source` is the name of a cell below `out`, which needs no key or seed
    where it is the only one of that name, a folder as `find_model_folder` takes it, or ID[@REVISION] of the
    hub. UsageError, from `where`, where none is there."""
    folder = find_named_cell(source, out, where)
    if folder is None and source and Path(source).exists():
        folder = Path(source)
    if folder is not None:
        stage = find_stage_without_weights(folder)
        if stage is not None:
            raise UsageError(f"{where}: its weights ({stage}) are gone; run its sweep's command again")
        try:
            return find_model_folder(folder)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
    hub_id = HUB_ID.fullmatch(source)
    # a path of which the first folder is here is a misspelt one, and nothing of the hub
    if hub_id is not None and not Path(source.partition("/")[0]).exists():
        return fetch_hub_model(hub_id["name"], hub_id["revision"], where)
    raise UsageError(
        f"{where}: neither a finished cell below {out} nor a folder{suggest_cells(source, out)}; give "
        "OUT/cells/CELL, OUT/finetune/KEY, a saved model's folder or its hub id"
    )


def suggest_cells(source: str, out: str | Path) -> str:
    """Which finished cells may be meant by a name that none has, as the end of an error."""
    names = list_cells(out)
    if not names:
        return "; no cell has finished there"
    label = make_folder_label(source)
    alike = [name for name in names if name.startswith(label)]
    if not label or not alike:
        return suggest(source, names)
    listed = ", ".join(alike[:LISTED_CELLS])
    if len(alike) > LISTED_CELLS:
        listed += f" and {len(alike) - LISTED_CELLS} more"
    return f"; of those that begin so: {listed}"


def find_stage_without_weights(cell: Path) -> str | None:
    """The stage of a finished cell that had its weights, where they are not there any more. None for a folder
    that is no cell, or a damaged one."""
    try:
        names = read_stage_names(cell)
    except UsageError:
        return None
    trained = [name for name in names if name.startswith("finetune/")]
    if not trained:
        return None
    model = cell.resolve().parent.parent / trained[-1] / MODEL_FOLDER
    has_weights = any(model.glob("*.safetensors"))
    return None if has_weights else trained[-1]


def list_cells(out: str | Path) -> list[str]:
    """The names of the finished cells below an output directory."""
    return sorted(folder.parent.name for folder in Path(out, CELLS_FOLDER).glob(f"*/{STAGES_FILE}"))


def read_stage_names(cell: Path) -> list[str]:
    """The stages that a cell was made of, KIND/KEY each, its evaluation last. UsageError for a damaged or
    missing file."""
    path = cell / STAGES_FILE
    names: list[str] = conform(read_json_file(path), list[str], str(path))
    return names


def list_gone_results(out: str | Path, stage_names: Sequence[str]) -> list[str]:
    """Of the stages of a cell below `out` those with its weights and answers that are not there any more."""
    gone = []
    for name in stage_names:
        if name.startswith(("finetune/", "evaluate/")) and not Path(out, name).is_dir():
            gone.append(name)
    return gone


def find_named_cell(source: str, out: str | Path, where: str) -> Path | None:
    """The folder of the finished cell below `out` that `source` names, with seed and key or without; None of
    a folder or of something else. Of cells that were made of each other the first is meant: a sweep that
    starts from a cell, or is taught by it, may make others of its name. UsageError, from `where`, for one of
    several."""
    cells = Path(out, CELLS_FOLDER)
    names = list_cells(out)
    if source in names:
        return cells / source
    if not source or Path(source).exists():
        return None
    namesakes = list_namesakes(source, names)
    if len(namesakes) > 1:
        namesakes = [name for name in namesakes if not is_made_of(cells / name, namesakes)] or namesakes
    if len(namesakes) > 1:
        raise UsageError(f"{where}: several finished cells below {out}: {', '.join(namesakes)}; give one")
    return cells / namesakes[0] if namesakes else None


def is_made_of(cell: Path, names: Sequence[str]) -> bool:
    """Whether a cell has started from one of these, or was taught by it."""
    file = cell / CONFIG_FILE
    if not file.exists():
        return False
    settings = dict(flatten_mapping(read_yaml(file)))
    for path in TRAINED_MODEL_SETTINGS:
        source = settings.get(path)
        if source is not None and (Path(source).name in names or list_namesakes(source, names)):
            return True
    return False


def settle_named_cells(config: Config) -> None:
    """Have a cell's trained models by the whole names of their cells, with seed and key, where they are named
    as cells: a cell that finishes while the sweep runs may have the same label. UsageError for a name that is
    one of several."""
    for path in TRAINED_MODEL_SETTINGS:
        section_name, name = path.split(".")
        section = getattr(config, section_name)
        source = getattr(section, name)
        if source is None:
            continue
        cell = find_named_cell(source, config.out, f"{path}={quote(source)}")
        if cell is not None:
            # no path, which would lead nowhere once `out` is moved
            setattr(section, name, cell.name)


def list_namesakes(source: str, names: Sequence[str]) -> list[str]:
    """The cells that are called so, but for the seed and the key that end a cell's name."""
    label = re.escape(make_folder_label(source))
    named_so = re.compile(rf"{label}(_seed=\d+)?-[0-9a-f]{{8}}")
    return [cell for cell in names if named_so.fullmatch(cell)]


def make_folder_label(label: str) -> str:
    """A row's label as a folder is called: letters that every file system takes."""
    return re.sub(r"[^\w.+=-]+", "_", label)


@remember_for_request()
def find_judge_folder(source: str) -> Path:
    """The folder of the chat model that judges: a folder, or ID[@REVISION] of the hub. UsageError where none
    is there."""
    if Path(source).is_dir():
        return Path(source)
    hub_id = HUB_ID.fullmatch(source)
    where = f"judge.model={quote(source)}"
    if hub_id is None or Path(source.partition("/")[0]).exists():
        raise UsageError(f"{where}: no such folder; give that of a chat model, or its hub id")
    try:
        return find_folder(hub_id["name"], hub_id["revision"])
    except UnreachableError as error:
        raise UnreachableError(f"{where}: cannot be fetched: {error}") from error


@remember_for_request()
def fetch_hub_model(name: str, revision: str | None, where: str) -> Path:
    """The folder in the hub's cache with a model's files, which are fetched where they are missing."""
    try:
        return find_model_folder(name, revision=revision)
    except UnreachableError as error:
        raise UnreachableError(f"{where}: cannot be fetched: {error}") from error
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def check_starts(config: Config) -> None:
    """UsageError for two models to start from, for a start or parts that no stage would take, and for a
    teacher of a cell without images."""
    if config.pretrain.init is not None and config.finetune.init is not None:
        raise UsageError(
            f"pretrain.init={shorten(config.pretrain.init)}: finetune.init="
            f"{shorten(config.finetune.init)} leaves stage 1 out; set one of the two"
        )
    if config.blind and config.pretrain.init is not None:
        raise UsageError(
            f"pretrain.init={shorten(config.pretrain.init)}: compressor={BLIND_COMPRESSOR} has no stage 1; "
            f"give finetune.init={shorten(config.pretrain.init)} finetune.init_parts=[llm]"
        )
    check_stage_of_parts(config, "pretrain", "finetune")
    check_stage_of_parts(config, "finetune", "pretrain")
    if config.blind and config.has_teacher:
        raise UsageError(
            f"finetune.teacher={config.finetune.teacher}: compressor={BLIND_COMPRESSOR} sees no image that "
            "the teacher sees; leave it out"
        )


def check_stage_of_parts(config: Config, stage: str, other_stage: str) -> None:
    """UsageError for parts under `stage` where the model that they would be of stands under `other_stage`."""
    section = getattr(config, stage)
    other = getattr(config, other_stage)
    has_parts_alone = section.init_parts and section.init is None
    if has_parts_alone and other.init is not None and not other.init_parts:
        raise UsageError(
            f"{stage}.init_parts={format_value(section.init_parts)}: the cell starts from {other_stage}."
            f"init={shorten(other.init)}; give {other_stage}.init_parts"
        )
