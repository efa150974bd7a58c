"""From cells to stages: what is computed, in which order, and what each result depends on.

    data -> features(tower) -> pretrain(compressor, projector) -> finetune(everything, seed) -> evaluate

A stage's key is the hash of exactly what it depends on, so cells that agree on a stage share it. The query
module takes no part in pretraining: all its variants of one compressor share one run. Features are a cache:
what they depend on is in the key of whoever reads them, they are not. Nothing here imports torch, except to
ask a compressor that shrinks images by how much.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from compressors.errors import UsageError
from compressors.registry import suggest
from experiments.config import signatures
from experiments.config.schema import Config, OptimisationSettings
from experiments.data import llava
from experiments.data.roles import is_file_entry
from experiments.registries import datasets
from experiments.store import keys

STAGE_ROLES = {"pretrain": "pretrain", "finetune": "train", "evaluate": "test"}  # the data that a stage reads
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


@dataclass(frozen=True)
class Stage:
    """One computation. Stages with the same key are the same one, whatever else their configurations say."""

    kind: str
    depends: dict[str, Any]
    inputs: dict[str, "Stage"]
    config: Config = field(repr=False)
    roles: tuple[str, ...] = ()

    @cached_property
    def key(self) -> str:
        return keys.digest_value(self.describe_for_key())

    def describe_for_key(self) -> dict[str, Any]:
        """What is hashed."""
        inputs = {name: stage.key for name, stage in self.inputs.items() if name not in CACHE_KINDS}
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
        return f"{self.kind} ({', '.join(self.roles)})" if self.roles else self.kind

    @property
    def name(self) -> str:
        """Its directory below the output directory."""
        return f"{self.kind}/{self.key[:16]}"

    def collect_stages(self) -> dict[str, "Stage"]:
        """This stage and all it needs, inputs first, by key."""
        found = {k: s for stage in self.inputs.values() for k, s in stage.collect_stages().items()}
        return found | {self.key: self}


def plan_stages(config: Config) -> Stage:
    """The evaluation of a cell, with all the stages that lead to it."""
    return Planner(config).evaluate()


def describe_optimisation(stage: OptimisationSettings) -> dict[str, Any]:
    """What a training stage's key holds of it. `group_by_length` only where it is set: results that are older
    than the setting keep their keys."""
    return {name: value for name, value in vars(stage).items() if name != "group_by_length" or value}


def find_image_rate(config: Config) -> int:
    """By how much the compressor shrinks images before the tower."""
    name = config.compressor_name
    return signatures.compressors().find_image_rate(name, config.knobs(name))


def find_needed_levels(config: Config) -> dict[str, list[int]]:
    """Hidden states of the tower that the compressor reads, for the key; nothing where it reads none."""
    name = config.compressor_name
    levels = signatures.compressors().find_needed_levels(name, config.knobs(name))
    return {"levels": levels} if levels else {}


class Planner:
    """The stages of one configuration, each made once."""

    def __init__(self, config: Config):
        self.config, self.data = config, config.data

    @cached_property
    def dataset(self) -> Stage | None:
        """The embedded data set, written out."""
        if self.data.dataset is None:
            return None
        depends = {"dataset": self.data.dataset, "seed": self.data.seed, "scale": self.data.scale}
        return Stage("data", depends, {}, self.config)

    def describe_role_data(self, role: str) -> tuple[list[Any], dict[str, Stage]]:
        """What a role's data depends on, and the stages it comes from."""
        entries = getattr(self.data, role)
        if not entries:
            raise UsageError(f"data.{role}: no data; give data.{role}=FILE.json in LLaVA format")
        described: list[Any] = []
        inputs: dict[str, Stage] = {}
        for entry in entries:
            if is_file_entry(entry):
                described.append(keys.digest_data_file(entry, self.data.images, not self.config.blind))
            else:
                described.append(self.check_split(role, entry))
                assert self.dataset is not None  # a split of it was found
                inputs["data"] = self.dataset
        return described, inputs

    def check_split(self, role: str, entry: str) -> str:
        """A split's name, or a UsageError if there is none such."""
        if self.data.dataset is None:
            raise UsageError(f"data.{role}={entry}: data.dataset is null, so give a path that ends in .json")
        splits = datasets.get(self.data.dataset).splits
        if entry not in splits:
            raise UsageError(f"data.{role}={entry}: no split of {self.data.dataset}{suggest(entry, splits)}")
        return entry

    def describe_features(self, role: str) -> dict[str, Any]:
        """How images become features."""
        tower, image, tiles = self.config.tower, self.config.image, self.config.tiles(role)
        layout = {} if tiles == 1 or image.layout == "square" else {"layout": image.layout}
        return {
            "tower": keys.digest_source(tower.source),
            "select_layer": tower.select_layer,
            "size": image.size,
            "tiles": tiles,
            **layout,
            "image_rate": find_image_rate(self.config),
            **find_needed_levels(self.config),
            "precision": self.config.trainer.precision,
        }

    def plan_features(self, role: str) -> dict[str, Stage]:
        """The cached features that a role reads: of all training data seen alike, or of the test data."""
        if self.config.blind or self.config.tower.train or not self.config.tower.cache:
            return {}
        alike = [r for r in ("pretrain", "train") if self.config.tiles(r) == self.config.tiles(role)]
        roles = ("test",) if role == "test" else tuple(alike)
        data: dict[str, list[Any]] = {}
        inputs: dict[str, Stage] = {}
        for each in roles:
            found, new = self.describe_role_data(each)
            # features are found by their images' paths: files that were moved are other ones
            data[each] = [
                {**entry, "at": os.path.abspath(llava.find_image_folder(path, self.data.images))}
                if isinstance(entry, dict)
                else entry
                for path, entry in zip(getattr(self.data, each), found)
            ]
            inputs |= new
        stage = Stage("features", {"data": data, **self.describe_features(role)}, inputs, self.config, roles)
        return {"features": stage}

    def describe_model(self) -> dict[str, Any]:
        """What is trained in stage 1, and the words around it."""
        config = self.config
        found = {
            "llm": keys.digest_source(config.llm.source),
            "prompt": dict(vars(config.prompt)),
            "max_length": self.data.max_length,
        }
        if not config.blind:
            name, projector = config.compressor_name, config.projector_name
            found["compressor"] = {name: signatures.compressors().settled(name, config.knobs(name))}
            knobs = signatures.projectors().settled(projector, config.knobs(projector))
            found["projector"] = {config.projector: knobs}
        return found

    @cached_property
    def pretrain(self) -> Stage:
        config, (data, inputs) = self.config, self.describe_role_data("pretrain")
        depends = {
            **self.describe_model(),
            **self.describe_features("pretrain"),
            "data": data,
            "seed": config.seed,
            "optimisation": describe_optimisation(config.pretrain),
        }
        return Stage("pretrain", depends, inputs | self.plan_features("pretrain"), config)

    @cached_property
    def finetune(self) -> Stage:
        config, (data, inputs) = self.config, self.describe_role_data("train")
        depends = {
            **self.describe_model(),
            "data": data,
            "seed": config.seed,
            "precision": config.trainer.precision,
            "optimisation": describe_optimisation(config.finetune),
        }
        if config.lora.rank:
            depends["lora"] = dict(vars(config.lora))
        if not config.blind:
            depends |= {**self.describe_features("train"), "train_tower": config.tower.train}
            inputs |= {"pretrain": self.pretrain} | self.plan_features("train")
        if config.query_module:
            name = config.query_module
            depends["query_module"] = {name: signatures.query_modules().settled(name, config.knobs(name))}
        return Stage("finetune", depends, inputs, config)

    def describe_pruning(self) -> tuple[dict[str, Any], dict[str, Stage]]:
        """The pruner, and the training data that it is calibrated on, if it is."""
        name = self.config.prune
        assert name is not None  # asked for by the caller
        knobs = signatures.pruners().settled(name, self.config.knobs(name))
        if not knobs.get("samples") or knobs.get("recipe") is not None:
            return {"prune": {name: knobs}}, {}
        data, inputs = self.describe_role_data("train")
        return {"prune": {name: knobs}, "calibration": data}, inputs

    def evaluate(self) -> Stage:
        config, (data, inputs) = self.config, self.describe_role_data("test")
        evaluation = {k: v for k, v in vars(config.evaluate).items() if k != "scale" or v}
        depends = {"data": data, "evaluate": evaluation, "precision": config.trainer.precision}
        if not config.blind:
            depends |= self.describe_features("test")
            inputs |= self.plan_features("test")
        if config.prune is not None:
            pruning, found = self.describe_pruning()
            depends, inputs = depends | pruning, inputs | found
        return Stage("evaluate", depends, inputs | {"finetune": self.finetune}, config)
