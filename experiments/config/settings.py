"""What settings and knobs may be: the checks that presets, table files and the command line share."""

import copy
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from compressors.command_line import check_bounds, check_finite, collect_settings, format_value
from compressors.errors import UsageError, shorten
from compressors.registry import check_integer_size, conform, suggest
from experiments.config import signatures
from experiments.config.schema import BLIND_COMPRESSOR, UNCOMPRESSED, WEIGHTED_ROLES, Config

COUNTS = 2**31  # whole numbers stay below, for all that is counted in 32 bits
STREAM_SETTINGS = (
    "shuffle_buffer",
    "bad_rows",
)  # of data; other rows are read wholly, and shuffled all together
QUERY_MODULE_SETTINGS = ("finetune.query_warmup", "evaluate.blank_queries")  # off where they are 0 or false


def locate_setting(path: str) -> bool:
    """True: `path` is a setting; False: a part's knob, PART.KNOB. Else a UsageError with the closest name."""
    settings = collect_settings(Config)
    if path in settings:
        return True
    head, _, knob = path.partition(".")
    section = f"{head}."
    section_paths = [setting for setting in settings if setting.startswith(section)]
    if section_paths and knob:
        hint = suggest_other_section(knob) or suggest(path, section_paths)
        raise UsageError(f"unknown setting '{path}'{hint}")
    if section_paths:
        raise UsageError(f"'{path}' is a section; set {', '.join(section_paths)}")
    owners = find_part_owners(head)
    if owners and knob:
        return False
    if owners:
        raise UsageError(f"'{path}' is a {owners[0].kind}; its knobs are set as {path}.KNOB=...")
    raise UsageError(f"unknown setting '{path}'{suggest_setting(path)}")


def suggest_setting(path: str) -> str:
    """What may have been meant: `lr` is in two sections, `finetun.lr` is close to one."""
    hint = suggest_other_section(path)
    if hint:
        return hint
    heads = {setting.partition(".")[0] for setting in collect_settings(Config)}
    for registry in signatures.registries():
        # projectors have names such as `linear`, which nobody means by a setting
        if registry is not signatures.projectors():
            heads.update(registry.names())
    return suggest(path.partition(".")[0], heads)


def suggest_other_section(name: str) -> str:
    """The sections that have a setting of that name; nothing if none has."""
    full_paths = [setting for setting in collect_settings(Config) if setting.endswith(f".{name}")]
    return f"; did you mean {' or '.join(full_paths)}?" if full_paths else ""


def find_part_owners(part: str) -> list[signatures.SignatureRegistry]:
    """The registries that have a part of that name."""
    return [registry for registry in signatures.registries() if part in registry.names()]


def takes_list(path: str) -> bool:
    """Whether one value of a setting or knob may be a list; False for what is neither."""
    setting = collect_settings(Config).get(path)
    if setting is not None:
        pattern, _ = setting.rules.get("form", ("", ""))
        # trainer.devices is text, that of a list among others
        return has_type(setting.hint, list, tuple, Sequence) or bool(re.fullmatch(pattern, "[0]"))
    return any(has_type(hint, list, tuple, Sequence) for hint in find_knob_types(path))


def takes_mapping(path: str) -> bool:
    """Whether one value of a knob may be a mapping; False for what is none."""
    return any(has_type(hint, dict, Mapping) for hint in find_knob_types(path))


def find_knob_types(path: str) -> list[Any]:
    """The types that the knob PART.KNOB has in the parts of that name."""
    part, _, knob = path.partition(".")
    parameters = [owner.knobs(part).get(knob) for owner in find_part_owners(part)]
    return [parameter.annotation for parameter in parameters if parameter is not None]


def has_type(hint: Any, *wanted_types: Any) -> bool:
    """Whether a type is one of those wanted, or has one among its alternatives."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(has_type(option, *wanted_types) for option in typing.get_args(hint))
    return (origin or hint) in wanted_types


def conform_setting(path: str, value: object) -> object:
    """`value` as the type of the setting `path` and within its bounds, or a UsageError."""
    refuse_lookup(path, value)
    setting = collect_settings(Config)[path]
    if setting.hint == list[str]:
        if isinstance(value, str):  # one file
            value = [value]
        words = list(conform(value, tuple[str, ...], path))
        check_bounds(path, words, setting.rules)
        return words
    if setting.hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        check_integer_size(value, path)
        value = str(value)  # precision: 32 in a YAML file
    conformed = conform(value, setting.hint, path)
    rules = setting.rules
    if isinstance(conformed, list):
        for entry in conformed:
            check_bounds(path, entry, rules)
        return conformed
    if isinstance(conformed, int) and "below" not in rules:
        rules = {**rules, "below": COUNTS}
    check_bounds(path, conformed, rules)
    return conformed


def refuse_lookup(path: str, value: object) -> None:
    """UsageError for `${...}`, at any depth: what a setting is stands in it, and nothing of the environment
    comes into results."""
    if isinstance(value, str) and "${" in value:
        raise UsageError(f"{path}={shorten(value)}: nothing is looked up in ${{...}}; write the value itself")
    if isinstance(value, Mapping):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple)):
        for entry in value:
            refuse_lookup(path, entry)


def assign_setting(config: Config, path: str, value: object) -> None:
    """Set a dotted path."""
    *sections, name = path.split(".")
    target: Any = config
    for section in sections:
        target = getattr(target, section)
    # a list of the preset must not be shared by all cells that start from it
    setattr(target, name, copy.copy(value))


def check_knob(part: str, knob: str, value: object) -> object:
    """A knob conformed to the signature of the part of that name that has it, or a UsageError."""
    refuse_lookup(f"{part}.{knob}", value)
    owners = find_part_owners(part)
    owner = owners[0]  # it explains what is wrong with a knob that nobody has
    for registry in owners:
        # a compressor and a projector are called `identity`
        if knob in registry.knobs(part):
            owner = registry
            break
    conformed = owner.check(part, **{knob: value})[knob]
    check_finite(f"{part}.{knob}", conformed)
    return conformed


def check_parts(config: Config) -> set[str]:
    """Names of the parts that a cell uses; a UsageError if one of them does not exist."""
    compressor = config.compressor_name
    query_module = config.query_module
    if config.projector != "auto":
        signatures.projectors().require(config.projector)
    if config.compressor.count("+") > 1:
        raise UsageError(f"compressor={config.compressor}: expected NAME or NAME+QUERY_MODULE")
    if compressor == BLIND_COMPRESSOR:
        check_blind_parts(config)
        return set()
    signatures.compressors().require(compressor)
    parts = {compressor, config.projector_name}
    if config.evaluate.compressor is not None:
        parts.add(check_evaluated_compressor(config))
    if config.prune is not None:
        parts.add(signatures.pruners().require(config.prune))
        if config.evaluate.cache == "static":
            raise UsageError(
                f"evaluate.cache=static: prune={config.prune} drops tokens between decoder layers, whose "
                "caches then differ in length; take auto or dynamic"
            )
    # `sap+` has no query module, and is no way to write `sap`
    if query_module or config.compressor.endswith("+"):
        parts.add(signatures.query_modules().require(query_module or ""))
    return parts


def check_evaluated_compressor(config: Config) -> str:
    """The compressor that stands in the place of the trained one in evaluation. UsageError where the LLM was
    not trained on patches as they are."""
    name = config.evaluate.compressor
    assert name is not None  # asked for by the caller
    if config.compressor_name != UNCOMPRESSED:
        raise UsageError(
            f"evaluate.compressor={name}: the cell is trained with compressor={config.compressor}; it takes "
            f"the place of compressor={UNCOMPRESSED}, which leaves the patches as they are"
        )
    return signatures.compressors().require(name)


def check_blind_parts(config: Config) -> None:
    """UsageError for what needs an image in a cell without any."""
    if config.query_module:
        raise UsageError(
            f"compressor={config.compressor}: '{BLIND_COMPRESSOR}' sees no image, it has no query module"
        )
    if config.prune is not None:
        raise UsageError(f"prune={config.prune}: compressor={BLIND_COMPRESSOR} has no visual tokens to drop")
    if config.evaluate.compressor is not None:
        raise UsageError(
            f"evaluate.compressor={config.evaluate.compressor}: compressor={BLIND_COMPRESSOR} sees no image"
        )


def check_query_module_settings(config: Config, overridden_paths: Collection[str]) -> None:
    """UsageError for a setting that acts on a query module, in a cell without one. What is not among
    `overridden_paths` comes from the preset, which the message names then."""
    if config.query_module:
        return
    for path in QUERY_MODULE_SETTINGS:
        section, name = path.split(".")
        value = getattr(getattr(config, section), name)
        if not value:
            continue
        source = ""
        if path not in overridden_paths:
            source = f"preset={config.preset}: "
        raise UsageError(
            f"{source}{path}={format_value(value)}: compressor={config.compressor} has no query module; "
            "add one, as in compressor=sap+embq, or leave the setting out"
        )


def switch_off_query_module_settings(config: Config) -> None:
    """For a cell without a query module that is made of one with it."""
    settings = collect_settings(Config)
    for path in QUERY_MODULE_SETTINGS:
        assign_setting(config, path, settings[path].default)


def check_weights(config: Config) -> None:
    """UsageError for weights that are not one for each entry."""
    for role in WEIGHTED_ROLES:
        weights = getattr(config.data, f"{role}_weights")
        entries = getattr(config.data, role)
        if weights and len(weights) != len(entries):
            raise UsageError(
                f"data.{role}_weights={format_value(weights)}: {len(weights)} weight(s), but data.{role} has "
                f"{len(entries)} entries; give one for each"
            )


def check_validation(config: Config) -> None:
    """UsageError for scores during training that there is no data for, or no process with all weights."""
    score_every = config.validate.score_every
    if score_every is None:
        return
    if not config.data.validation:
        raise UsageError(
            f"validate.score_every={score_every}: no data.validation; give data.validation=FILE.jsonl"
        )
    if config.trainer.strategy == "fsdp":
        raise UsageError(
            f"validate.score_every={score_every}: trainer.strategy=fsdp has a share of the weights in each "
            "process, which generates nothing; leave it out, or take trainer.strategy=ddp"
        )


def check_streaming(config: Config, overridden_paths: Collection[str]) -> None:
    """UsageError for a stream of unknown length without a number of steps, and for settings that need all
    rows at once, or a stream."""
    if not config.data.streaming:
        for name in STREAM_SETTINGS:
            if f"data.{name}" in overridden_paths:
                raise UsageError(
                    f"data.{name}={getattr(config.data, name)}: is for streamed data; leave it out, or set "
                    "data.streaming=true"
                )
        return
    for stage in ("pretrain", "finetune") if config.aligns else ("finetune",):
        section = getattr(config, stage)
        if section.max_steps is None:
            raise UsageError(
                f"data.streaming=true: nobody knows how many rows a stream has; give {stage}.max_steps=STEPS"
            )
        if f"{stage}.epochs" in overridden_paths:
            raise UsageError(
                f"{stage}.epochs={section.epochs}: data.streaming=true trains {stage}.max_steps="
                f"{section.max_steps} steps, over as many passes as they take; leave it out"
            )
        if section.group_by_length:
            source = ""
            if f"{stage}.group_by_length" not in overridden_paths:
                source = f"preset={config.preset}: "
            raise UsageError(
                f"{source}{stage}.group_by_length=true: needs the lengths of all rows, which nobody has with "
                f"data.streaming=true; set {stage}.group_by_length=false"
            )


def check_batches(config: Config) -> None:
    """UsageError if a step cannot be cut into as many pieces as are asked for."""
    for stage in ("pretrain", "finetune"):
        section = getattr(config, stage)
        if section.batch_size % section.accumulate:
            raise UsageError(
                f"{stage}.accumulate={section.accumulate}: does not divide "
                f"{stage}.batch_size={section.batch_size}"
            )
