"""Time and peak memory of a training step: the sweep's own trainer on random weights and made-up rows."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from connectors.tiling import Tiling
from experiments.config.schema import Config
from experiments.efficiency.counting import count_training_flops
from experiments.efficiency.memory import measure_peak_bytes
from experiments.efficiency.table1 import build_cell_subject
from experiments.efficiency.timing import Spread, find_spread, read_clock
from experiments.models.random_model import fill_weights, make_random_batch, set_placeholder_ids
from experiments.runtime.progress import Reporter
from experiments.stages.fit import fit_module, resolve_precision
from experiments.stages.module import SlothModule
from experiments.stages.train import unfreeze_stage_parts
from llm_adapters.conversation import IGNORE
from llm_adapters.modeling import FlashSlothForConditionalGeneration

TRAINING_ROLES = {"pretrain": "pretrain", "finetune": "train"}
PAPER_ROWS = {"pretrain": 558_000, "finetune": 665_000}  # of the paper's data, one epoch
STAGE_TEXT_TOKENS = {
    "pretrain": 40,
    "finetune": 256,
}  # tokens of a row beside visual and query tokens: our assumption
WARM_UP_STEPS = 1  # optimiser steps before those that count: AdamW's state is made in the first


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

    def __init__(self):
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step > len(self.times):
            self.times.append(read_clock())


def make_stage_config(config: Config, stage: str) -> Config:
    """As the sweep trains it: no query module in stage 1, nothing written on the way."""
    trainer = dataclasses.replace(
        config.trainer, logger="none", checkpoint_every=10**9, devices="1", strategy="auto"
    )
    if stage == "pretrain":
        config = dataclasses.replace(config, compressor=config.compressor_name)
    return dataclasses.replace(config, trainer=trainer)


def make_step_rows(
    config: Config, stage: str, model: FlashSlothForConditionalGeneration, size: int, text: int
) -> dict[str, Tensor]:
    """The rows of a micro-batch, on the CPU; features in place of pixels where the preset caches them."""
    optimisation = getattr(config, stage)
    crops = Tiling(config.tiles(TRAINING_ROLES[stage]), size).most_crops
    batch = make_random_batch(model, crops, size, optimisation.batch_size // optimisation.accumulate, text)
    if uses_cached_features(config):
        levels = 1 + len(model.compressor.needs_levels)
        rows, grid = len(batch["input_ids"]), model.vision_tower.grid(size, size)
        del batch["pixel_values"]
        batch["vision_features"] = torch.randn(rows, crops, *grid, model.vision_tower.dim * levels)
    pinned = torch.cuda.is_available()
    return {name: value.cpu().pin_memory() if pinned else value.cpu() for name, value in batch.items()}


def uses_cached_features(config: Config) -> bool:
    """Whether the sweep would read the tower's features from disk."""
    return config.tower.cache and not config.tower.train


def iterate_step_batches(batch: dict[str, Tensor], pieces: int, steps: int) -> Iterator[dict]:
    """Micro-batches of so many steps: the same rows again and again."""
    answers = pieces * int((batch["labels"] != IGNORE).sum())
    for number in range(steps * pieces):
        yield {**batch, "pieces": pieces, "answer_tokens": answers, "number": number}


def time_optimiser_steps(
    config: Config,
    stage: str,
    model: FlashSlothForConditionalGeneration,
    batch: dict[str, Tensor],
    steps: int,
    report: Reporter,
) -> list[float]:
    """Seconds of each optimiser step but the first."""
    module = SlothModule(model, getattr(config, stage), steps, config.seed)
    module.train_dataloader = lambda: RepeatedBatches(batch, module.optimisation.accumulate, steps)
    times = StepClock()
    with TemporaryDirectory() as folder:
        fit_module(config, module, Path(folder), report, callbacks=[times])
    return [b - a for a, b in zip(times.times, times.times[1:])][WARM_UP_STEPS - 1 :]


class RepeatedBatches:
    """What Lightning takes as a loader."""

    def __init__(self, batch: dict[str, Tensor], pieces: int, steps: int):
        self.batch, self.pieces, self.steps = batch, pieces, steps

    def __len__(self) -> int:
        return self.steps * self.pieces

    def __iter__(self) -> Iterator[dict]:
        return iterate_step_batches(self.batch, self.pieces, self.steps)


def measure_training(
    config: Config, stage: str, rounds: int, text: int, data_rows: int, device: torch.device, report: Reporter
) -> TrainingCost:
    """One stage of a cell on one device."""
    config = make_stage_config(config, stage)
    config.trainer.accelerator = "gpu" if device.type == "cuda" else "cpu"
    subject, tiles = build_cell_subject("", config), config.tiles(TRAINING_ROLES[stage])
    model, size = subject.model, subject.size
    flops_of_row = count_training_flops(subject, config, stage, text, tiles, uses_cached_features(config))
    fill_weights(model, device, torch.float32, config.seed)
    set_placeholder_ids(model)
    unfreeze_stage_parts(config, stage, model)
    batch, optimisation = make_step_rows(config, stage, model, size, text), getattr(config, stage)
    run = partial(time_optimiser_steps, config, stage, model, batch, report=report)
    weights = sum(p.nbytes for p in model.parameters())
    if device.type == "cuda":
        seconds: list[float] = []
        added = measure_peak_bytes(lambda: seconds.extend(run(rounds + WARM_UP_STEPS)), device)
    else:
        seconds = run(rounds + WARM_UP_STEPS)
        added = measure_peak_bytes(lambda: run(1 + WARM_UP_STEPS), device)
    return TrainingCost(
        find_spread(seconds),
        optimisation.batch_size,
        optimisation.accumulate,
        batch["input_ids"].shape[1],
        weights + added,
        flops_of_row * optimisation.batch_size,
        data_rows,
        resolve_precision(config.trainer.precision),
        uses_cached_features(config),
    )
