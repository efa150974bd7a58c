"""Time and peak memory of a training step: the sweep's own trainer on random weights and made-up rows."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from connectors.tiling import Tiling
from experiments.config.cells import make_alignment_config, make_training_config
from experiments.config.schema import Config
from experiments.efficiency.counting import count_training_flops
from experiments.efficiency.memory import count_weight_bytes, measure_peak_bytes
from experiments.efficiency.table1 import build_cell_subject
from experiments.efficiency.timing import Spread, find_spread, read_clock
from experiments.models.random_model import fill_weights, make_random_batch, set_placeholder_ids
from experiments.runtime.progress import Reporter
from experiments.stages.train import unfreeze_stage_parts
from experiments.stages.training.fit import fit_module, resolve_precision
from experiments.stages.training.module import SlothModule
from experiments.store.plan import TRAINING_ROLES
from llm_adapters.answers import index_answers
from llm_adapters.conversation import IGNORE
from llm_adapters.modeling import FlashSlothForConditionalGeneration

PAPER_ROWS = {"pretrain": 558_000, "finetune": 665_000}  # of the paper's data, one epoch
# tokens of a row beside visual and query tokens: our assumption
STAGE_TEXT_TOKENS = {"pretrain": 40, "finetune": 256}
WARM_UP_STEPS = 1  # optimiser steps before those that count: AdamW's state is made in the first
NO_CHECKPOINT = 10**9  # steps between two checkpoints: more than any measurement takes

StepRows = dict[str, Tensor]  # what a micro-batch is made of


@dataclass
class TrainingCost:
    """Of one stage.

    seconds      of an optimiser step
    rows, pieces, tokens    of a step; pieces it is computed in; tokens of a row
    peak_bytes   of the whole step: weights, gradients, AdamW's state, activations
    flops        of a step, by the formula in the definitions
    hours        of one device for `data_rows` rows
    cached       features came from the cache: the tower takes no part
    """

    seconds: Spread
    rows: int
    pieces: int
    tokens: int
    peak_bytes: int
    flops: int
    data_rows: int
    precision: str
    cached: bool

    @property
    def estimated_hours(self) -> float:
        return self.data_rows / self.rows * self.seconds.median / 3600


class StepClock(Callback):
    """When each optimiser step has ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step > len(self.times):  # with accumulation not every batch is a step
            self.times.append(read_clock())


class RepeatedBatches:
    """What Lightning takes as a loader: micro-batches of `steps` steps, the same rows again and again."""

    def __init__(self, rows: StepRows, pieces: int, steps: int):
        self.rows = rows
        self.pieces = pieces
        self.steps = steps

    def __len__(self) -> int:
        return self.steps * self.pieces

    def __iter__(self) -> Iterator[dict[str, Any]]:
        answer_tokens = self.pieces * int((self.rows["labels"] != IGNORE).sum())
        for number in range(self.steps * self.pieces):
            yield {**self.rows, "pieces": self.pieces, "answer_tokens": answer_tokens, "number": number}


def make_stage_config(config: Config, stage: str, device: torch.device) -> Config:
    """As the sweep trains it: no query module in stage 1, nothing written on the way, one device."""
    # the query module takes no part in stage 1: one run serves all its variants
    config = make_alignment_config(config) if stage == "pretrain" else make_training_config(config)
    trainer = dataclasses.replace(
        config.trainer,
        logger="none",
        checkpoint_every=NO_CHECKPOINT,
        devices="1",
        strategy="auto",
        accelerator="gpu" if device.type == "cuda" else "cpu",
    )
    return dataclasses.replace(config, trainer=trainer)


def make_step_rows(
    config: Config, stage: str, model: FlashSlothForConditionalGeneration, size: int, text: int
) -> StepRows:
    """The rows of a micro-batch, on the CPU; features in place of pixels where the preset caches them."""
    optimisation = getattr(config, stage)
    crops = Tiling(config.tiles(TRAINING_ROLES[stage]), size).most_crops
    rows = optimisation.batch_size // optimisation.accumulate
    batch = make_random_batch(model, crops, size, rows, text)
    if config.caches_features:
        tower = model.vision_tower
        channels = tower.count_channels(model.compressor.needs_levels, model.compressor.needs_cues)
        height, width = tower.grid(size, size)
        del batch["pixel_values"]
        batch["vision_features"] = torch.randn(len(batch["input_ids"]), crops, height, width, channels)
    batch["answer_index"] = index_answers(batch["labels"].cpu())
    for name, value in batch.items():
        batch[name] = value.cpu()
        if torch.cuda.is_available():  # as a data loader leaves them
            batch[name] = batch[name].pin_memory()
    return batch


def time_optimiser_steps(
    config: Config,
    stage: str,
    model: FlashSlothForConditionalGeneration,
    rows: StepRows,
    steps: int,
    report: Reporter,
) -> list[float]:
    """Seconds of each optimiser step but the first."""
    module = SlothModule(model, getattr(config, stage), steps, config.seed)
    loader = RepeatedBatches(rows, module.optimisation.accumulate, steps)
    # Lightning's hook as an attribute, as the sweep sets it
    module.train_dataloader = lambda: loader  # type: ignore[method-assign]
    clock = StepClock()
    with TemporaryDirectory() as folder:
        fit_module(config, module, Path(folder), report, callbacks=[clock])
    seconds = [end - start for start, end in zip(clock.times, clock.times[1:])]
    return seconds[WARM_UP_STEPS - 1 :]  # the first step has no start


def measure_training(
    config: Config, stage: str, rounds: int, text: int, data_rows: int, device: torch.device, report: Reporter
) -> TrainingCost:
    """One stage of a cell on one device.

    text       text tokens of a row
    data_rows  rows of the stage's data, for the estimate of hours
    """
    config = make_stage_config(config, stage, device)
    subject = build_cell_subject("", config)
    model = subject.model
    tiles = config.tiles(TRAINING_ROLES[stage])
    # counted before weights are made: it is of the meta device
    flops_of_row = count_training_flops(subject, config, stage, text, tiles, config.caches_features)
    fill_weights(model, device, torch.float32, config.seed)
    set_placeholder_ids(model)
    # as the sweep does it, so that gradients are those of its stage
    unfreeze_stage_parts(config, stage, model)
    rows = make_step_rows(config, stage, model, subject.size, text)
    run_steps = partial(time_optimiser_steps, config, stage, model, rows, report=report)
    weight_bytes = count_weight_bytes(model.parameters())
    if device.type == "cuda":
        # weights come to the GPU in training, as `trainer.frozen` has them
        model.cpu()
        weight_bytes = 0
        seconds: list[float] = []
        added_bytes = measure_peak_bytes(lambda: seconds.extend(run_steps(rounds + WARM_UP_STEPS)), device)
    else:
        # counting live tensors takes time: memory is measured in a run of its own
        seconds = run_steps(rounds + WARM_UP_STEPS)
        added_bytes = measure_peak_bytes(lambda: run_steps(1 + WARM_UP_STEPS), device)
    optimisation = getattr(config, stage)
    return TrainingCost(
        seconds=find_spread(seconds),
        rows=optimisation.batch_size,
        pieces=optimisation.accumulate,
        tokens=rows["input_ids"].shape[1],
        peak_bytes=weight_bytes + added_bytes,
        flops=flops_of_row * optimisation.batch_size,
        data_rows=data_rows,
        precision=resolve_precision(config.trainer),
        cached=config.caches_features,
    )
