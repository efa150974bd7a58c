"""From cells to stages: what is computed, in which order, and what each result depends on.

    data -> features(tower) -> pretrain(compressor, projector, seed) -> finetune(everything) -> evaluate

`finetune.init` leaves the pretraining out.

A stage's key is the hash of exactly what it depends on, so cells that agree on a stage share it. The query
module takes no part in pretraining: all its variants of one compressor share one run. Features are a cache:
what they depend on is in the key of whoever reads them, they are not. Nothing here imports torch, except to
ask a compressor with other knobs than its defaults, or one of somebody's own, what it reads.
"""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from compressors.errors import UsageError
from experiments.config import signatures
from experiments.config.metric_names import is_exact, list_metric_names
from experiments.config.schema import Config
from experiments.data.roles import VALIDATION_INPUT, is_file_entry
from experiments.registries import datasets
from experiments.store import keys, part_code
from experiments.store.key_data import DataDescriber
from experiments.store.key_settings import (
    describe_dot,
    describe_evaluation,
    describe_features,
    describe_frozen,
    describe_optimisation,
    describe_part,
    describe_teacher_code,
)
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


class Planner:
    """The stages of one configuration, each made once.

    `describe_...` methods return a part of what a stage depends on. Its key hashes that, so whatever they
    leave out of the usual case (a layout without tiles, a scale of null) keeps the keys of older results.
    """

    def __init__(self, config: Config):
        self.config = config
        self.data = config.data
        self.role_data = DataDescriber(config)

    @cached_property
    def dataset(self) -> Stage | None:
        """The embedded data set, written out."""
        if self.data.dataset is None:
            return None
        depends = {"dataset": self.data.dataset, "seed": self.data.seed, "scale": self.data.scale}
        return Stage("data", depends, {}, self.config)

    def plan_data(self, role: str) -> dict[str, Stage]:
        """The stage that writes what a role reads; none for files of the user's own."""
        if not self.role_data.reads_splits(role):
            return {}
        if self.dataset is None:
            for entry in getattr(self.data, role):
                if not is_file_entry(entry):
                    self.role_data.check_split(role, entry)  # which refuses it
        assert self.dataset is not None
        return {"data": self.dataset}

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
            # without a stage 1 nobody reads its data; of an embedded data set there is a cache of both
            entries = (*self.data.pretrain, *self.data.train)
            if not self.config.aligns and any(map(is_file_entry, entries)):
                roles = ("train",)
        data: dict[str, list[Any]] = {}
        inputs: dict[str, Stage] = {}
        for cached_role in roles:
            data[cached_role] = self.role_data.describe_cached_role(cached_role)
            inputs |= self.plan_data(cached_role)
        depends = {"data": data, **describe_features(self.config, role)}
        return {"features": Stage("features", depends, inputs, self.config, roles)}

    def describe_model(self) -> dict[str, Any]:
        """What is trained in stage 1, and the words around it."""
        config = self.config
        description: dict[str, Any] = {
            "llm": keys.digest_source(config.llm.source),
            "prompt": asdict(Template(**vars(config.prompt))),  # which refuses its reserved words
            "max_length": self.data.max_length,
        }
        if not config.blind:
            compressors = signatures.compressors()
            description["compressor"] = describe_part(config, compressors, config.compressor_name)
            # `auto` is its own name in the key: which projector it becomes follows from the compressor
            projectors = signatures.projectors()
            description["projector"] = describe_part(
                config, projectors, config.projector_name, config.projector
            )
        return description

    def describe_pretraining(self) -> dict[str, Any]:
        """What stage 1 depends on. The query module is in none of it."""
        return {
            **self.describe_model(),
            **describe_features(self.config, "pretrain"),
            "data": self.role_data.describe_role("pretrain"),
            **self.role_data.describe_drawing("pretrain"),
            "seed": self.config.seed,
            "optimisation": describe_optimisation(self.config.pretrain, self.data.streaming),
            **describe_frozen(self.config),
            **keys.describe_trained_models(self.config, "pretrain"),
        }

    @cached_property
    def pretrain(self) -> Stage:
        """Stage 1."""
        inputs = self.plan_data("pretrain") | self.plan_features("pretrain")
        return Stage("pretrain", self.describe_pretraining(), inputs, self.config)

    def describe_finetuning(self) -> dict[str, Any]:
        """What stage 2 depends on."""
        config = self.config
        depends = {
            **self.describe_model(),
            "data": self.role_data.describe_role("train"),
            **self.role_data.describe_drawing("train"),
            "seed": config.seed,
            "precision": config.trainer.precision,
            "optimisation": describe_optimisation(config.finetune, self.data.streaming),
            **describe_frozen(config),
            **keys.describe_trained_models(config, "finetune"),
        }
        if config.has_teacher:
            depends["teacher"] |= describe_teacher_code(config)
        if config.lora.rank:
            depends["lora"] = dict(vars(config.lora))
        if not config.blind:
            depends |= describe_features(config, "train")
            depends["train_tower"] = config.tower.train
        if config.query_module:
            query_modules = signatures.query_modules()
            depends["query_module"] = describe_part(config, query_modules, config.query_module)
            depends |= describe_dot(config, depends["query_module"][config.query_module])
        return depends

    @cached_property
    def finetune(self) -> Stage:
        """Stage 2. A blind cell has neither features nor a stage 1, one that starts from trained weights no
        stage 1."""
        config = self.config
        depends = self.describe_finetuning()
        inputs = self.plan_data("train")
        if not config.blind:
            if config.aligns:
                inputs["pretrain"] = self.pretrain
            inputs |= self.plan_features("train")
        return Stage("finetune", depends, inputs | self.plan_validation(), config)

    def plan_validation(self) -> dict[str, Stage]:
        """The data set that data.validation has splits of. Its files are validated; no weight follows from
        it, so that nothing of it is in a key."""
        inputs: dict[str, Stage] = {}
        for entry in self.data.validation:
            self.role_data.describe_entry("validation", entry)  # which refuses what is not there
            if not is_file_entry(entry):
                assert self.dataset is not None  # a split of it was found
                inputs[VALIDATION_INPUT] = self.dataset
        return inputs

    def describe_pruning(self) -> dict[str, Any]:
        """The pruner, and the training data that it is calibrated on, if it is."""
        name = self.config.prune
        if name is None:
            return {}
        description: dict[str, Any] = {"prune": describe_part(self.config, signatures.pruners(), name)}
        knobs = description["prune"][name]
        if not knobs.get("samples") or knobs.get("recipe") is not None:
            return description
        if self.config.streams("train"):
            raise UsageError(
                f"prune={name}: is calibrated on {knobs['samples']} rows of data.train, unread with "
                f"data.streaming=true; give {name}.recipe, or a pruner without calibration"
            )
        description["calibration"] = self.role_data.describe_role("train")
        return description

    def describe_evaluation(self) -> dict[str, Any]:
        """What the last stage depends on, beside what was trained."""
        config = self.config
        depends: dict[str, Any] = {
            "data": self.role_data.describe_role("test"),
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
            depends |= describe_features(config, "test")
        if config.evaluate.compressor is not None:
            compressors = signatures.compressors()
            depends["evaluated_compressor"] = describe_part(config, compressors, config.evaluate.compressor)
        return depends | self.describe_pruning()

    def plan_evaluation(self) -> Stage:
        """The last stage, which all others lead to."""
        depends = self.describe_evaluation()
        inputs = self.plan_data("test")
        if not self.config.blind:
            inputs |= self.plan_features("test")
        if "calibration" in depends:
            inputs |= self.plan_data("train")
        inputs["finetune"] = self.finetune
        return Stage("evaluate", depends, inputs, self.config)

    def describe_again(self, stage: Stage) -> dict[str, Any]:
        """What a stage of this configuration depends on, by the files as they are now."""
        if stage.kind == "features":
            return self.plan_features(stage.roles[0])["features"].depends
        if stage.kind == "pretrain":
            return self.describe_pretraining()
        if stage.kind == "finetune":
            return self.describe_finetuning()
        if stage.kind == "evaluate":
            return self.describe_evaluation()
        return stage.depends  # the embedded data, which are made of nothing
