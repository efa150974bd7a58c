"""From overrides to cells: defaults < preset < what it says a compressor wants < command line. Every knob is
checked against its part's signature.
"""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from compressors.errors import UsageError
from experiments.config import signatures
from experiments.config.overrides import combine_axes, locate_setting, parse_setting, parse_value
from experiments.config.presets import assign_setting, check_knob, load_preset
from experiments.config.schema import BLIND_COMPRESSOR, Config

BLIND_ROW = "blind"  # how the rows that a sweep adds by itself begin


@dataclass(frozen=True)
class Cell:
    """One run: its configuration and what its row is called. Cells that differ in the seed share a row."""

    config: Config
    label: str
    row: tuple[tuple[str, str], ...]  # everything that tells its row from others


@cache
def parse_override(path: str, text: str) -> tuple[bool, object]:
    """Whether `path` is a setting (else a knob), and its value."""
    if locate_setting(path):
        return True, parse_setting(path, text)
    part, knob = path.split(".", 1)
    return False, check_knob(part, knob, parse_value(text, path))


def check_parts(config: Config) -> set[str]:
    """Names of the parts a cell uses; a UsageError if one of them does not exist."""
    name, query_module = config.compressor_name, config.query_module
    if config.projector != "auto":
        signatures.projectors().require(config.projector)
    if config.compressor.count("+") > 1:
        raise UsageError(f"compressor={config.compressor}: expected NAME or NAME+QUERY_MODULE")
    if name == BLIND_COMPRESSOR and query_module:
        raise UsageError(
            f"compressor={config.compressor}: '{BLIND_COMPRESSOR}' sees no image, it has no query module"
        )
    if name == BLIND_COMPRESSOR and config.prune is not None:
        raise UsageError(f"prune={config.prune}: compressor={BLIND_COMPRESSOR} has no visual tokens to drop")
    if name == BLIND_COMPRESSOR:
        return set()
    signatures.compressors().require(name)
    pruner = set() if config.prune is None else {signatures.pruners().require(config.prune)}
    if query_module or config.compressor.endswith("+"):
        signatures.query_modules().require(query_module or "")
    return {name, config.projector_name} | ({query_module} if query_module else set()) | pruner


def check_batches(config: Config) -> None:
    """UsageError if a step cannot be cut into the pieces asked for."""
    for stage in ("pretrain", "finetune"):
        section = getattr(config, stage)
        if section.batch_size % section.accumulate:
            raise UsageError(
                f"{stage}.accumulate={section.accumulate}: does not divide "
                f"{stage}.batch_size={section.batch_size}"
            )


def resolve_overrides(given: Mapping[str, str]) -> tuple[Config, set[str]]:
    """The configuration of a combination of overrides, and which of them are knobs that it has no use for."""
    config, knobs, wants = load_preset(given.get("preset", "tiny"))
    config, knobs = copy_section(config), {part: dict(values) for part, values in knobs.items()}
    idle = {}
    for path, text in given.items():
        if path == "preset":
            continue
        is_setting, value = parse_override(path, text)
        if is_setting:
            assign_setting(config, path, value)
        else:
            idle[path] = value
    used = check_parts(config)
    for path, value in wants.get(config.compressor_name, {}).items():
        if path not in given:
            assign_setting(config, path, value)
    check_batches(config)
    for path in [p for p in idle if p.split(".", 1)[0] in used]:
        part, knob = path.split(".", 1)
        knobs.setdefault(part, {})[knob] = idle.pop(path)
    config.parts = {part: knobs[part] for part in sorted(used) if knobs.get(part)}
    return config, set(idle)


def copy_section(section: Any) -> Any:
    """A configuration that shares nothing with the old one; deepcopy would be most of a large plan's time."""
    return dataclasses.replace(
        section,
        **{
            name: copy_section(value) if dataclasses.is_dataclass(value) else copy.copy(value)
            for name, value in vars(section).items()
        },
    )


def make_cells(axes: Mapping[str, list[str]]) -> list[Cell]:
    """The product of the axes. A cell ignores knobs of parts it lacks; one that no cell uses is an error."""
    cells, unused = make_labelled_cells(axes, "")
    refuse_unused_knobs(unused, axes, cells)
    return cells


def make_labelled_cells(
    axes: Mapping[str, list[str]], label: str, complete: Callable[[Config], Mapping[str, str]] | None = None
) -> tuple[list[Cell], set[str]]:
    """The product of a row's axes, and the knobs among them that none of its cells uses. `complete` gives
    overrides that follow from a cell's configuration."""
    cells, unused = [], None
    for given in combine_axes(dict(axes)):
        config, idle = resolve_overrides(given)
        if complete is not None:
            given = {**given, **complete(config)}
            config, idle = resolve_overrides(given)
        unused = idle if unused is None else unused & idle
        told = [p for p, v in axes.items() if len(v) > 1 and p not in {"seed", "compressor", *idle}]
        words = [label, config.compressor if not label or len(axes.get("compressor", ())) > 1 else ""]
        words += [f"{p}={given[p]}" for p in told]
        row = tuple((p, v) for p, v in given.items() if p != "seed" and p not in idle)
        cells.append(Cell(config, " ".join(w for w in words if w), (("", label), *row)))
    return cells, unused or set()


def refuse_unused_knobs(unused: set[str], axes: Mapping[str, list[str]], cells: list[Cell]) -> None:
    """UsageError for knobs that no cell has a use for."""
    if unused:
        path = min(unused)
        names = ", ".join(sorted({c.config.compressor for c in cells}))
        part = path.split(".")[0]
        needs = f"; it needs prune={part}" if part in signatures.pruners().names() else ""
        raise UsageError(f"{path}={','.join(axes[path])}: no cell uses '{part}'; compressor={names}{needs}")


def make_blind_cells(cells: list[Cell]) -> list[Cell]:
    """One cell without any image for each data and language model that `cells` have, at their first seed. Of
    several, each is called by what tells it from the others."""
    found: dict[str, Config] = {}
    for cell in cells:
        found.setdefault(str(collect_blind_settings(cell.config)), cell.config)
    told = [collect_blind_settings(config) for config in found.values()]
    differ = [path for path in told[0] if len({str(each[path]) for each in told}) > 1] if told else []
    made = []
    for config, settings in zip(map(copy_section, found.values()), told):
        config.compressor, config.projector, config.prune, config.parts = BLIND_COMPRESSOR, "auto", None, {}
        config.evaluate.scale = None
        label = " ".join([BLIND_ROW, *(f"{path}={settings[path]}" for path in differ)])
        made.append(Cell(config, label, (("", label), ("preset", config.preset))))
    return made


def collect_blind_settings(config: Config) -> dict[str, Any]:
    """The settings that tell one blind cell from another, by their paths."""
    sections = {name: vars(getattr(config, name)) for name in ("data", "llm", "prompt", "evaluate")}
    found = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    del found["evaluate.scale"]
    return found
