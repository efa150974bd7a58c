"""What a stage's key holds of a cell's settings. Results that are older than a setting keep their keys: where
it is as it was before there was one, nothing of it is in a key.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compressors.reading import read_json_object
from experiments.config import signatures
from experiments.config.scaling import read_widths
from experiments.config.schema import Config
from experiments.config.schema_sections import EvaluationSettings, OptimisationSettings
from experiments.config.sources import resolve_source
from experiments.config.trained import find_teacher
from experiments.store import keys, part_code

# which `describe_trained_models` has in their place
TRAINED_SETTINGS = ("init", "init_parts", "teacher", "teacher_weight", "teacher_temperature")


def describe_optimisation(stage: OptimisationSettings, is_streamed: bool = False) -> dict[str, Any]:
    """What a training stage's key holds of it."""
    settings = describe_settings(stage, ("group_by_length", "query_warmup"))
    del settings["checkpointing"]  # what is computed again is the same
    if is_streamed:  # `max_steps` alone says how much is read
        del settings["epochs"]
    for name in TRAINED_SETTINGS:
        settings.pop(name, None)
    if "query_warmup" not in settings:  # its form, then, is of a warm-up that there is none of
        settings.pop("query_warmup_form", None)
    return settings


def describe_frozen(config: Config) -> dict[str, str]:
    """What a training stage's key holds of the type of frozen weights: float32 is that of older results."""
    if config.trainer.frozen == "float32":
        return {}
    return {"frozen": config.trainer.frozen}


def describe_evaluation(evaluation: EvaluationSettings) -> dict[str, Any]:
    """What an evaluation's key holds of its settings; how answers are scored has a place of its own there."""
    settings = describe_settings(evaluation, ("scale", "blank_queries", "compressor"))
    del settings["metric"]
    # the same answers in float32; in bfloat16, which a GPU answers in, rounding differs, as it does between
    # devices, which are in no key either
    del settings["cache"]
    return settings


def describe_settings(section: object, young: Sequence[str]) -> dict[str, Any]:
    """What a key holds of a section of the settings. The `young` ones only where they are set: results that
    are older than these settings keep their keys."""
    return {name: value for name, value in vars(section).items() if value or name not in young}


def find_image_rate(config: Config, name: str) -> int:
    """By how much a compressor of the cell shrinks images before the tower."""
    return signatures.compressors().find_image_rate(name, config.knobs(name), partial(read_widths, config))


def find_tower_needs(config: Config, name: str) -> dict[str, list]:
    """Hidden states and cues of the tower that a compressor of the cell reads, for the key; nothing where it
    reads none."""
    knobs = config.knobs(name)
    widths = partial(read_widths, config)
    needs: dict[str, list] = {
        "levels": signatures.compressors().find_needed_levels(name, knobs, widths),
        "cues": signatures.compressors().find_needed_cues(name, knobs, widths),
    }
    return {need: values for need, values in needs.items() if values}


def describe_features(config: Config, role: str) -> dict[str, Any]:
    """How the images of a role become patch features."""
    tower = config.tower
    image = config.image
    description: dict[str, Any] = {
        "tower": keys.digest_source(tower.source),
        "select_layer": tower.select_layer,
        "size": image.size,
        "tiles": config.tiles(role),
    }
    if description["tiles"] > 1 and image.layout != "square":
        description["layout"] = image.layout
    compressor = config.find_compressor(role)
    description["image_rate"] = find_image_rate(config, compressor)
    description.update(find_tower_needs(config, compressor))
    description["precision"] = config.trainer.precision
    return description


def describe_teacher_code(config: Config) -> dict[str, Any]:
    """What a key holds of the code of a teacher's parts; nothing of shipped ones that are as they were."""
    settings = read_json_object(find_teacher(config) / "config.json")
    versions: dict[str, Any] = {}
    for registry in (signatures.compressors(), signatures.query_modules(), signatures.projectors()):
        kind = registry.kind.replace(" ", "_")
        name = settings.get(kind)
        if name in registry.names():
            code = part_code.describe_code(registry, name, settings.get(f"{kind}_knobs") or {})
            versions |= code.get(part_code.CODE_KEY, {})
    return {part_code.CODE_KEY: versions} if versions else {}


def describe_dot(config: Config, knobs: dict[str, Any]) -> dict[str, str]:
    """What a key holds of where query tokens begin, by their module's knobs. Those at the dot of a Gemma,
    which scales its embeddings, once began at the unscaled one; nothing of all others."""
    if knobs.get("init") != "dot":
        return {}
    kind = config.llm.source
    file = Path(resolve_source(kind)) / "config.json"
    if file.is_file():
        kind = str(read_json_object(file).get("model_type"))
    return {"dot": "as the LLM embeds it"} if "gemma" in kind.lower() else {}


def describe_part(
    config: Config, registry: signatures.SignatureRegistry, part: str, name: str | None = None
) -> dict[str, Any]:
    """A part, called `name`, with all its knobs: as set, else their defaults, so that spelling a default
    changes no key. With its code unless we ship it."""
    knobs = registry.settled(part, config.knobs(part))
    return {name or part: knobs, **part_code.describe_code(registry, part, knobs)}
