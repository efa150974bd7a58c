"""From overrides to cells: defaults < preset < command line, every knob checked against its part's signature.

A preset is a YAML file with settings and knobs; `preset:` inside it names the one that it starts from, and
`wants:` has settings that hold for one compressor: `wants: {qformer: {pretrain.lr: 1e-3}}`.
"""
import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments import signatures
from experiments.config import BLIND, Config
from experiments.overrides import checked, combinations, locate, setting_of, value_of

PRESETS = Path(__file__).parent / "presets"
BLIND_ROW = "blind"  # how the rows that a sweep adds by itself begin


class Preset(NamedTuple):
    """A configuration, knobs by part, and settings by the compressor that wants them. Not to be changed."""

    config: Config
    knobs: dict[str, dict[str, Any]]
    wants: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run: its configuration and what its row is called. Cells that differ in the seed share a row."""

    config: Config
    label: str
    row: tuple[tuple[str, str], ...]  # everything that tells its row from others


def preset_names() -> list[str]:
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping, or a UsageError that names the file."""
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected settings (key: value), found a {type(found).__name__}")
    return found


@cache
def preset(name: str, above: tuple[str, ...] = ()) -> Preset:
    """A preset by name or path, or a UsageError that names the file."""
    is_file = name.endswith((".yaml", ".yml"))
    path = Path(name) if is_file else PRESETS / f"{name}.yaml"
    if not is_file and name not in preset_names():
        known = suggest(name, preset_names())
        raise UsageError(f"unknown preset '{name}'{known}, or a path that ends in .yaml")
    if name in above:
        raise UsageError(f"{path}: presets start from each other in a circle: {' -> '.join((*above, name))}")
    content = read_yaml(path)
    base = content.pop("preset", None)
    wanted = content.pop("wants", {})
    config, knobs, wants = copy.deepcopy(preset(base, (*above, name)) if base else Preset(Config(), {}, {}))
    try:
        for key, value in flat(content):
            if locate(key):
                assign(config, key, checked(key, value))
            else:
                part, knob = key.split(".", 1)
                knobs.setdefault(part, {})[knob] = check_knob(part, knob, value)
        for compressor, settings in wanted_by(wanted).items():
            wants.setdefault(compressor, {}).update(settings)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    config.preset = name
    return Preset(config, knobs, wants)


def wanted_by(content: object) -> dict[str, dict[str, Any]]:
    """A preset's `wants`, checked: settings of sections by compressor, no knobs, which are under their part's
    name."""
    if not isinstance(content, Mapping) or not all(isinstance(each, Mapping) for each in content.values()):
        raise UsageError("wants: expected COMPRESSOR: {SETTING: VALUE}")
    found = {}
    for compressor, settings in content.items():
        signatures.compressors().require(str(compressor))
        told = dict(flat(settings))
        other = next((key for key in told if not locate(key) or "." not in key), None)
        if other is not None:
            raise UsageError(f"wants.{compressor}: '{other}' cannot be here; settings of a section can, such "
                             "as pretrain.lr")
        found[str(compressor)] = {key: checked(key, value) for key, value in told.items()}
    return found


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything in a nested mapping."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def assign(config: Config, path: str, value: object) -> None:
    """Set a dotted path."""
    *sections, name = path.split(".")
    for section in sections:
        config = getattr(config, section)
    setattr(config, name, copy.copy(value))


def check_knob(part: str, knob: str, value: object) -> object:
    """A knob conformed to the signature of the part of that name that has it, or a UsageError."""
    owners = [r for r in signatures.registries() if part in r.names()]
    owner = next((r for r in owners if knob in r.knobs(part)), owners[0])
    return owner.check(part, **{knob: value})[knob]


@cache
def override(path: str, text: str) -> tuple[bool, object]:
    """Whether `path` is a setting (else a knob), and its value."""
    if locate(path):
        return True, setting_of(path, text)
    part, knob = path.split(".", 1)
    return False, check_knob(part, knob, value_of(text, path))


def check_parts(config: Config) -> set[str]:
    """Names of the parts a cell uses; a UsageError if one of them does not exist."""
    name, query_module = config.compressor_name, config.query_module
    if config.projector != "auto":
        signatures.projectors().require(config.projector)
    if config.compressor.count("+") > 1:
        raise UsageError(f"compressor={config.compressor}: expected NAME or NAME+QUERY_MODULE")
    if name == BLIND and query_module:
        raise UsageError(f"compressor={config.compressor}: '{BLIND}' sees no image, it has no query module")
    if name == BLIND and config.prune is not None:
        raise UsageError(f"prune={config.prune}: compressor={BLIND} has no visual tokens to drop")
    if name == BLIND:
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
            raise UsageError(f"{stage}.accumulate={section.accumulate}: does not divide "
                             f"{stage}.batch_size={section.batch_size}")


def resolve(given: Mapping[str, str]) -> tuple[Config, set[str]]:
    """The configuration of a combination of overrides, and which of them are knobs that it has no use for."""
    config, knobs, wants = preset(given.get("preset", "tiny"))
    config, knobs = copied(config), {part: dict(values) for part, values in knobs.items()}
    idle = {}
    for path, text in given.items():
        if path == "preset":
            continue
        is_setting, value = override(path, text)
        if is_setting:
            assign(config, path, value)
        else:
            idle[path] = value
    used = check_parts(config)
    for path, value in wants.get(config.compressor_name, {}).items():
        if path not in given:
            assign(config, path, value)
    check_batches(config)
    for path in [p for p in idle if p.split(".", 1)[0] in used]:
        part, knob = path.split(".", 1)
        knobs.setdefault(part, {})[knob] = idle.pop(path)
    config.parts = {part: knobs[part] for part in sorted(used) if knobs.get(part)}
    return config, set(idle)


def copied(section: Any) -> Any:
    """A configuration that shares nothing with the old one; deepcopy would be most of a large plan's time."""
    return dataclasses.replace(section, **{
        name: copied(value) if dataclasses.is_dataclass(value) else copy.copy(value)
        for name, value in vars(section).items()})


def make_cells(axes: Mapping[str, list[str]]) -> list[Cell]:
    """The product of the axes. A cell ignores knobs of parts it lacks; one that no cell uses is an error."""
    cells, unused = labelled(axes, "")
    refuse(unused, axes, cells)
    return cells


def labelled(axes: Mapping[str, list[str]], label: str,
             complete: Callable[[Config], Mapping[str, str]] | None = None) -> tuple[list[Cell], set[str]]:
    """The product of a row's axes, and the knobs among them that none of its cells uses. `complete` gives
    overrides that follow from a cell's configuration."""
    cells, unused = [], None
    for given in combinations(dict(axes)):
        config, idle = resolve(given)
        if complete is not None:
            given = {**given, **complete(config)}
            config, idle = resolve(given)
        unused = idle if unused is None else unused & idle
        told = [p for p, v in axes.items() if len(v) > 1 and p not in {"seed", "compressor", *idle}]
        words = [label, config.compressor if not label or len(axes.get("compressor", ())) > 1 else ""]
        words += [f"{p}={given[p]}" for p in told]
        row = tuple((p, v) for p, v in given.items() if p != "seed" and p not in idle)
        cells.append(Cell(config, " ".join(w for w in words if w), (("", label), *row)))
    return cells, unused or set()


def refuse(unused: set[str], axes: Mapping[str, list[str]], cells: list[Cell]) -> None:
    """UsageError for knobs that no cell has a use for."""
    if unused:
        path = min(unused)
        names = ", ".join(sorted({c.config.compressor for c in cells}))
        part = path.split(".")[0]
        needs = f"; it needs prune={part}" if part in signatures.pruners().names() else ""
        raise UsageError(f"{path}={','.join(axes[path])}: no cell uses '{part}'; compressor={names}{needs}")


def blind_cells(cells: list[Cell]) -> list[Cell]:
    """One cell without any image for each data and language model that `cells` have, at their first seed. Of
    several, each is called by what tells it from the others."""
    found: dict[str, Config] = {}
    for cell in cells:
        found.setdefault(str(without_image(cell.config)), cell.config)
    told = [without_image(config) for config in found.values()]
    differ = [path for path in told[0] if len({str(each[path]) for each in told}) > 1] if told else []
    made = []
    for config, settings in zip(map(copied, found.values()), told):
        config.compressor, config.projector, config.prune, config.parts = BLIND, "auto", None, {}
        config.evaluate.scale = None
        label = " ".join([BLIND_ROW, *(f"{path}={settings[path]}" for path in differ)])
        made.append(Cell(config, label, (("", label), ("preset", config.preset))))
    return made


def without_image(config: Config) -> dict[str, Any]:
    """The settings that tell one blind cell from another, by their paths."""
    sections = {name: vars(getattr(config, name)) for name in ("data", "llm", "prompt", "evaluate")}
    found = {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}
    del found["evaluate.scale"]
    return found
