"""From cells to stages: what is computed, in which order, and what each result depends on.

    data -> features(tower) -> pretrain(compressor, projector) -> finetune(everything, seed) -> evaluate

`finetune.init` leaves the pretraining out.

A stage's key is the hash of exactly what it depends on, so cells that agree on a stage share it. The query
module takes no part in pretraining: all its variants of one compressor share one run. Features are a cache:
what they depend on is in the key of whoever reads them, they are not. Nothing here imports torch, except to
ask a compressor with other knobs than its defaults, or one of somebody's own, what it reads.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from compressors.errors import UsageError, quote
from compressors.registry import suggest
from experiments.config import signatures
from experiments.config.metric_names import is_exact, list_metric_names
from experiments.config.schema import Config, EvaluationSettings, OptimisationSettings
from experiments.data import llava, stored
from experiments.data.roles import VALIDATION_INPUT, is_file_entry
from experiments.data.shares import read_weights
from experiments.data.streaming.rows import make_rules
from experiments.registries import datasets
from experiments.store import keys, part_code
from llm_adapters.conversation import Template

TRAINING_ROLES = {"pretrain": "pretrain", "finetune": "train"}  # the data that a stage of training reads
STAGE_ROLES = {**TRAINING_ROLES, "evaluate": "test"}
# Counted up when a stage's code changes its result.
STAGE_VERSIONS = {
    "data": 0,  # the data set has its own
    "features": 1,
    "pretrain": 1,
    "finetune": 1,
    "evaluate": 1,
}
STAGE_KINDS = tuple(STAGE_VERSIONS)
CACHE_KINDS = ("features",)
# which `describe_trained_models` has in their place
TRAINED_SETTINGS = ("init", "init_parts", "teacher", "teacher_weight", "teacher_temperature")
UNKEYED_INPUTS = (*CACHE_KINDS, VALIDATION_INPUT)  # no result follows from the last one


@dataclass(frozen=True)
class Stage:
    """One computation. Stages with the same key are the same one, whatever else their configurations say.

    kind      one of STAGE_KINDS
    depends   what its result follows from, beside its inputs; JSON-able
    inputs    the stages whose results it reads, by kind
    config    of the first cell that asked for it; only what `depends` says of it counts
    roles     of the data whose features it caches
    run_name  what loggers call it in a sweep; in no key
    """

    kind: str
    depends: dict[str, Any]
    inputs: dict[str, "Stage"]
    config: Config = field(repr=False)
    roles: tuple[str, ...] = ()
    run_name: str = field(default="", repr=False, compare=False)

    @cached_property
    def key(self) -> str:
        """sha256 of what it depends on, in hexadecimal digits."""
        return keys.digest_value(self.describe_for_key())

    def describe_for_key(self) -> dict[str, Any]:
        """What is hashed."""
        inputs = {name: stage.key for name, stage in self.inputs.items() if name not in UNKEYED_INPUTS}
        return {
            "stage": self.kind,
            "version": self.version,
            "depends": self.depends,
            "inputs": inputs,
        }

    @property
    def version(self) -> int:
        """Counted up when the code that computes the stage changes its result."""
        if self.kind == "data":
            return datasets.get(self.depends["dataset"]).version
        return STAGE_VERSIONS[self.kind]

    @property
    def title(self) -> str:
        """What it is called on screen."""
        words = list(self.roles)
        start = self.config.find_start(self.kind) if "init" in self.depends else None
        if start is not None:
            words.append(f"from {start.source}: {', '.join(start.parts)}")
        if "stream" in self.depends:
            words.append("streamed")
        if "teacher" in self.depends:
            words.append(f"teacher {self.config.finetune.teacher}")
        if not words:
            return self.kind
        return f"{self.kind} ({', '.join(words)})"

    @property
    def name(self) -> str:
        """Its directory below the output directory."""
        return f"{self.kind}/{self.key[:16]}"

    def collect_stages(self) -> dict[str, "Stage"]:
        """This stage and all it needs, inputs first, by key."""
        stages: dict[str, Stage] = {}
        for stage in self.inputs.values():
            stages |= stage.collect_stages()
        return stages | {self.key: self}


def plan_stages(config: Config) -> Stage:
    """The evaluation of a cell, with all the stages that lead to it."""
    return Planner(config).plan_evaluation()


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
    return signatures.compressors().find_image_rate(name, config.knobs(name))


def find_tower_needs(config: Config, name: str) -> dict[str, list]:
    """Hidden states and cues of the tower that a compressor of the cell reads, for the key; nothing where it
    reads none."""
    knobs = config.knobs(name)
    needs: dict[str, list] = {
        "levels": signatures.compressors().find_needed_levels(name, knobs),
        "cues": signatures.compressors().find_needed_cues(name, knobs),
    }
    return {need: values for need, values in needs.items() if values}


def has_no_image(description: object) -> bool:
    """Whether what a role's data depends on is a file of text alone."""
    return isinstance(description, dict) and description["images"] == keys.NO_IMAGES


class Planner:
    """The stages of one configuration, each made once.

    `describe_...` methods return a part of what a stage depends on. Its key hashes that, so whatever they
    leave out of the usual case (a layout without tiles, a scale of null) keeps the keys of older results.
    """

    def __init__(self, config: Config):
        self.config = config
        self.data = config.data

    @cached_property
    def dataset(self) -> Stage | None:
        """The embedded data set, written out."""
        if self.data.dataset is None:
            return None
        depends = {"dataset": self.data.dataset, "seed": self.data.seed, "scale": self.data.scale}
        return Stage("data", depends, {}, self.config)

    def describe_role_data(self, role: str) -> tuple[list[Any], dict[str, Stage]]:
        """What a role's data depends on, an entry a file or split, and the stages it comes from."""
        entries = getattr(self.data, role)
        if not entries:
            raise UsageError(f"data.{role}: no data; give data.{role}=FILE.json, or .jsonl, or a data set")
        descriptions: list[Any] = []
        inputs: dict[str, Stage] = {}
        if self.config.streams(role):
            return [self.describe_stream(role, entry) for entry in entries], inputs
        for entry in entries:
            if is_file_entry(entry):
                descriptions.append(self.digest_file_entry(entry))
            else:
                descriptions.append(self.check_split(role, entry))
                assert self.dataset is not None  # a split of it was found
                inputs["data"] = self.dataset
        if not self.config.blind and all(map(has_no_image, descriptions)):
            raise UsageError(
                f"data.{role}={quote(','.join(entries))}: no sample has an image, and compressor="
                f'{self.config.compressor} compresses some; name them under "image", or take compressor=none'
            )
        return descriptions, inputs

    def describe_stream(self, role: str, entry: str) -> dict[str, str]:
        """What a stream depends on: its shards. Its first rows are checked."""
        if self.data.dataset is not None and entry in datasets.get(self.data.dataset).splits:
            raise UsageError(
                f"data.{role}={entry}: a split of {self.data.dataset} is not streamed; give shards, as "
                f"data.{role}=DIR/*.parquet, or leave data.streaming out"
            )
        try:
            rules = make_rules(self.config)
            return keys.digest_stream(entry, rules, not self.config.blind, self.data.bad_rows)
        except UsageError as error:
            raise UsageError(f"data.{role}, streamed: {error}") from error

    def describe_drawing(self, role: str) -> dict[str, Any]:
        """In which order and how often the rows of a role are drawn, where an epoch has not each row once,
        shuffled with all others."""
        description: dict[str, Any] = {}
        weights = read_weights(self.config, role)
        if weights:
            description["weights"] = weights
        if self.config.streams(role):
            description["stream"] = {"buffer": self.data.shuffle_buffer}
        return description

    def digest_file_entry(self, path: str) -> dict[str, str]:
        """A file's digests."""
        prompt = self.config.prompt
        with_images = not self.config.blind
        outside = self.data.outside_images
        return keys.digest_data_file(path, self.data.images, with_images, outside, prompt.end, prompt.system)

    def check_split(self, role: str, entry: str) -> str:
        """A split's name, or a UsageError if there is none such."""
        if self.data.dataset is None:
            raise UsageError(
                f"data.{role}={entry}: data.dataset is null, so give a path that ends in .json, .jsonl or "
                f".parquet, a data set's folder (./{entry}) or hf:NAME"
            )
        splits = datasets.get(self.data.dataset).splits
        if entry not in splits:
            hint = suggest(entry, splits)
            if os.path.isdir(entry):
                hint = f"; the folder of that name is data.{role}=./{entry}"
            raise UsageError(f"data.{role}={entry}: no split of {self.data.dataset}{hint}")
        return entry

    def describe_features(self, role: str) -> dict[str, Any]:
        """How the images of a role become patch features."""
        tower = self.config.tower
        image = self.config.image
        description: dict[str, Any] = {
            "tower": keys.digest_source(tower.source),
            "select_layer": tower.select_layer,
            "size": image.size,
            "tiles": self.config.tiles(role),
        }
        if description["tiles"] > 1 and image.layout != "square":
            description["layout"] = image.layout
        compressor = self.config.find_compressor(role)
        description["image_rate"] = find_image_rate(self.config, compressor)
        description.update(find_tower_needs(self.config, compressor))
        description["precision"] = self.config.trainer.precision
        return description

    def plan_features(self, role: str) -> dict[str, Stage]:
        """The cached features that a role reads: of all training data seen alike, or of the test data.

        Empty where there is nothing to cache: no image, a tower that is trained, `tower.cache=false`, or rows
        that are streamed.
        """
        if not self.config.caches_features or self.config.streams(role):
            return {}
        roles: tuple[str, ...] = ("test",)
        if role != "test":
            # both trainings share one cache, unless stage 2 sees tiles
            tiles = self.config.tiles(role)
            roles = tuple(name for name in ("pretrain", "train") if self.config.tiles(name) == tiles)
            # without a stage 1 nobody reads its files; of an embedded data set there is a cache of both
            if not self.config.aligns and any(map(is_file_entry, self.data.train)):
                roles = ("train",)
        data: dict[str, list[Any]] = {}
        inputs: dict[str, Stage] = {}
        for cached_role in roles:
            data[cached_role], role_inputs = self.describe_cached_data(cached_role)
            inputs |= role_inputs
        depends = {"data": data, **self.describe_features(role)}
        return {"features": Stage("features", depends, inputs, self.config, roles)}

    def describe_cached_data(self, role: str) -> tuple[list[Any], dict[str, Stage]]:
        """`describe_role_data` without the texts of files, which no feature depends on, and with the image
        folder of each: cached features are found by their images' paths, so those that were moved are other
        ones."""
        descriptions, inputs = self.describe_role_data(role)
        for number, path in enumerate(getattr(self.data, role)):
            if is_file_entry(path):
                folder = os.path.abspath(llava.find_image_folder(path, self.data.images))
                descriptions[number] = {"images": descriptions[number]["images"], "at": folder}
                if self.data.images and stored.is_dataset(path):  # which has images too
                    descriptions[number]["set"] = stored.locate_dataset(path)
        return descriptions, inputs

    def describe_model(self) -> dict[str, Any]:
        """What is trained in stage 1, and the words around it."""
        config = self.config
        description: dict[str, Any] = {
            "llm": keys.digest_source(config.llm.source),
            "prompt": asdict(Template(**vars(config.prompt))),  # which refuses its reserved words
            "max_length": self.data.max_length,
        }
        if not config.blind:
            description["compressor"] = self.describe_part(signatures.compressors(), config.compressor_name)
            # `auto` is its own name in the key: which projector it becomes follows from the compressor
            projectors = signatures.projectors()
            description["projector"] = self.describe_part(projectors, config.projector_name, config.projector)
        return description

    def describe_part(
        self, registry: signatures.SignatureRegistry, part: str, name: str | None = None
    ) -> dict[str, Any]:
        """A part, called `name`, with all its knobs: as set, else their defaults, so that spelling a default
        changes no key. With its code unless we ship it."""
        knobs = registry.settled(part, self.config.knobs(part))
        return {name or part: knobs, **part_code.describe_code(registry, part, knobs)}

    @cached_property
    def pretrain(self) -> Stage:
        """Stage 1. The query module is in none of what it depends on."""
        data, inputs = self.describe_role_data("pretrain")
        depends = {
            **self.describe_model(),
            **self.describe_features("pretrain"),
            "data": data,
            **self.describe_drawing("pretrain"),
            "seed": self.config.seed,
            "optimisation": describe_optimisation(self.config.pretrain, self.data.streaming),
            **describe_frozen(self.config),
            **keys.describe_trained_models(self.config, "pretrain"),
        }
        return Stage("pretrain", depends, inputs | self.plan_features("pretrain"), self.config)

    @cached_property
    def finetune(self) -> Stage:
        """Stage 2. A blind cell has neither features nor a stage 1, one that starts from trained weights no
        stage 1."""
        config = self.config
        data, inputs = self.describe_role_data("train")
        depends = {
            **self.describe_model(),
            "data": data,
            **self.describe_drawing("train"),
            "seed": config.seed,
            "precision": config.trainer.precision,
            "optimisation": describe_optimisation(config.finetune, self.data.streaming),
            **describe_frozen(config),
            **keys.describe_trained_models(config, "finetune"),
        }
        if config.lora.rank:
            depends["lora"] = dict(vars(config.lora))
        if not config.blind:
            depends |= self.describe_features("train")
            depends["train_tower"] = config.tower.train
            if config.aligns:
                inputs["pretrain"] = self.pretrain
            inputs |= self.plan_features("train")
        if config.query_module:
            depends["query_module"] = self.describe_part(signatures.query_modules(), config.query_module)
        return Stage("finetune", depends, inputs | self.plan_validation(), config)

    def plan_validation(self) -> dict[str, Stage]:
        """The data set that data.validation has splits of. Its files are validated; no weight follows from
        it, so that nothing of it is in a key."""
        inputs: dict[str, Stage] = {}
        for entry in self.data.validation:
            if is_file_entry(entry):
                self.digest_file_entry(entry)
            else:
                self.check_split("validation", entry)
                assert self.dataset is not None  # a split of it was found
                inputs[VALIDATION_INPUT] = self.dataset
        return inputs

    def describe_pruning(self) -> tuple[dict[str, Any], dict[str, Stage]]:
        """The pruner, and the training data that it is calibrated on, if it is."""
        name = self.config.prune
        assert name is not None  # asked for by the caller
        description: dict[str, Any] = {"prune": self.describe_part(signatures.pruners(), name)}
        knobs = description["prune"][name]
        if not knobs.get("samples") or knobs.get("recipe") is not None:
            return description, {}
        if self.config.streams("train"):
            raise UsageError(
                f"prune={name}: is calibrated on {knobs['samples']} rows of data.train, unread with "
                f"data.streaming=true; give {name}.recipe, or a pruner without calibration"
            )
        description["calibration"], inputs = self.describe_role_data("train")
        return description, inputs

    def plan_evaluation(self) -> Stage:
        """The last stage, which all others lead to."""
        config = self.config
        data, inputs = self.describe_role_data("test")
        depends: dict[str, Any] = {
            "data": data,
            "evaluate": describe_evaluation(config.evaluate),
            "precision": config.trainer.precision,
        }
        if not is_exact(config.evaluate.metric):
            names = list_metric_names(config.evaluate.metric)
            depends["metric"] = {
                "names": names,
                **part_code.describe_metric_code(names.values()),
                **keys.describe_judge(config),
            }
        if not config.blind:
            depends |= self.describe_features("test")
            inputs |= self.plan_features("test")
        if config.evaluate.compressor is not None:
            depends["evaluated_compressor"] = self.describe_part(
                signatures.compressors(), config.evaluate.compressor
            )
        if config.prune is not None:
            pruning, calibration_inputs = self.describe_pruning()
            depends |= pruning
            inputs |= calibration_inputs
        inputs["finetune"] = self.finetune
        return Stage("evaluate", depends, inputs, config)
