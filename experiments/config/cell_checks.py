"""What settings of a cell must agree on: its parts with each other, and its data and steps with both."""

from collections.abc import Collection

from compressors.errors import UsageError
from compressors.setting_fields import collect_settings, format_value
from experiments.config import signatures
from experiments.config.schema import BLIND_COMPRESSOR, UNCOMPRESSED, Config
from experiments.config.schema_sections import WEIGHTED_ROLES
from experiments.config.settings import assign_setting

# of data; other rows are read wholly, and shuffled all together
STREAM_SETTINGS = ("shuffle_buffer", "bad_rows")
QUERY_MODULE_SETTINGS = ("finetune.query_warmup", "evaluate.blank_queries")  # off where they are 0 or false


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


def name_preset(config: Config, path: str, overridden_paths: Collection[str]) -> str:
    """How an error about a setting begins: with the preset that it comes from, unless it is overridden."""
    return "" if path in overridden_paths else f"preset={config.preset}: "


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
        source = name_preset(config, path, overridden_paths)
        raise UsageError(
            f"{source}{path}={format_value(value)}: compressor={config.compressor} has no query module; "
            "add one, as in compressor=sap+embq, or leave the setting out"
        )


def switch_off_query_module_settings(config: Config) -> None:
    """For a cell without a query module that is made of one with it."""
    settings = collect_settings(Config)
    for path in QUERY_MODULE_SETTINGS:
        assign_setting(config, path, settings[path].default)


def check_data_weights(config: Config) -> None:
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
            path = f"{stage}.group_by_length"
            raise UsageError(
                f"{name_preset(config, path, overridden_paths)}{path}=true: needs the lengths of all rows, "
                f"which nobody has with data.streaming=true; set {path}=false"
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
