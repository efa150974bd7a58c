"""What can be known of a cell before any of its stages begins: no weights are read."""

from dataclasses import replace
from importlib.util import find_spec

import torch

from compressors.errors import UsageError
from experiments.config.metric_names import asks_judge, collect_metric_options, is_exact
from experiments.config.schema import Config
from experiments.data import llava, roles
from experiments.data.loader import check_step_rows
from experiments.metrics.judge import check_judge
from experiments.metrics.scoring import QuestionScorer
from experiments.models import build
from experiments.registries import datasets
from experiments.stages import row_lengths
from experiments.stages.training import frozen, lora, strategies
from experiments.stages.training.initial import check_start
from experiments.stages.training.teacher import check_teacher

LOGGER_PACKAGES = ("tensorboard", "wandb")  # what the loggers of these names need


def check_cell_config(config: Config) -> None:
    """UsageError when a cell lacks a package or a device, or when its parts do not fit together."""
    build.silence_libraries()
    check_training_needs(config)
    check_metric(config)
    model = build.check_model_config(config)
    check_start(config, model)
    check_teacher(config, model)
    if config.lora.rank:
        with torch.device("meta"):
            lora.add_adapters(model.language_model, config.lora, config.seed)
    row_lengths.check_row_lengths(config)


def check_metric(config: Config) -> None:
    """UsageError for a metric that does not score single questions, or not those of test files. The questions
    of the embedded data set are looked at when it is written, its families here."""
    if is_exact(config.evaluate.metric):
        return  # any answer is a truth of it; its base, torchmetrics, takes half a second to load
    scorer = QuestionScorer(config.evaluate.metric, collect_metric_options(config))
    if asks_judge(config):
        check_judge(config.judge)
    test_files = list(filter(roles.is_file_entry, config.data.test))
    validation_files = list(filter(roles.is_file_entry, config.data.validation))
    in_files = replace(config, data=replace(config.data, test=test_files, validation=validation_files))
    if config.validate.score_every is not None:
        samples = roles.load_role_samples(in_files, {}, "validation", check_images=False)
        # not all families of a mapping need be in it
        for question in llava.split_questions(samples):
            scorer.read_truth(question)
    questions = roles.load_questions(in_files, {}, check_images=False)
    scorer.check_truths(questions)
    families = {question.name_family() for question in questions}
    if len(test_files) < len(config.data.test) and config.data.dataset is not None:
        split_families = datasets.get(config.data.dataset).families
        if not split_families:  # known once they are written: the evaluation looks again
            return
        families.update(split_families)
    scorer.check_families(families)


def check_training_needs(config: Config) -> None:
    """UsageError when strategy, precision, logger or LoRA wants what this machine does not have."""
    strategies.check_strategy(config.trainer)
    frozen.check_frozen(config.trainer)
    check_logger(config.trainer.logger)
    lora.check_peft(config.lora)


def check_logger(name: str) -> None:
    """UsageError for a logger whose package is not here."""
    if name in LOGGER_PACKAGES and find_spec(name) is None:
        raise UsageError(
            f"trainer.logger={name}: {name} is not installed; pip install 'slothkit[{name}]', or take "
            "trainer.logger=csv"
        )


def check_devices(config: Config) -> None:
    """UsageError when this machine lacks the devices that a cell trains on, or a step has no rows for all."""
    world = max(1, strategies.count_processes(config.trainer)) * config.trainer.nodes
    stages = ["pretrain", "finetune"] if config.aligns else ["finetune"]
    for stage in stages:
        optimisation = getattr(config, stage)
        check_step_rows(optimisation.batch_size, optimisation.accumulate, world)
