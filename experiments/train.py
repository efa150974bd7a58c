"""Both training stages: build, align or tune, save."""
import dataclasses
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger
from safetensors.torch import load_file, save_file

from compressors.errors import UsageError
from experiments.build import build, quiet
from experiments.config import Config
from experiments.data import llava
from experiments.data.loader import Conversations, Images, Order, StepLoader, feature_cache
from experiments.module import SlothModule, set_trainable
from experiments.plan import files
from experiments.progress import Reporter
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor

ALIGNED = "aligned.safetensors"
MODEL = "model"


def pretrain(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """Stage 1: compressor and projector learn to speak to the frozen LLM. The query module takes no part, so
    that all its variants share this stage. Writes the two parts' weights."""
    quiet()
    config = dataclasses.replace(config, compressor=config.compressor_name)
    image = dataclasses.replace(config.image, tiles=config.tiles("pretrain"))
    config = dataclasses.replace(config, image=image)
    model, processor = build(config)
    train(config, "pretrain", model, processor, inputs, out, report)
    save_file(aligned(model), out / ALIGNED)


def finetune(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """Stage 2: from stage 1's weights, all but (usually) the tower. Writes model and processor."""
    quiet()
    model, processor = build(config)
    if not config.blind:
        load_aligned(model, inputs["pretrain"] / ALIGNED)
    train(config, "finetune", model, processor, inputs, out, report)
    model.save_pretrained(out / MODEL)
    processor.save_pretrained(out / MODEL)


def aligned(model: FlashSlothForConditionalGeneration) -> dict[str, torch.Tensor]:
    """What stage 1 has trained."""
    state = {f"{name}.{key}": value for name in ("compressor", "projector")
             for key, value in getattr(model, name).state_dict().items()}
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def load_aligned(model: FlashSlothForConditionalGeneration, path: Path) -> None:
    """Stage 1's weights, every one of them."""
    state = load_file(path)
    if state.keys() != aligned(model).keys():
        wrong = sorted(state.keys() ^ aligned(model).keys())
        raise UsageError(f"{path}: does not fit this compressor and projector (first difference: {wrong[0]})"
                         "; delete it")
    model.load_state_dict(state, strict=False)


def train(config: Config, stage: str, model: FlashSlothForConditionalGeneration,
          processor: FlashSlothProcessor, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """Run one stage, from its last checkpoint if a run before was killed."""
    optimisation = getattr(config, stage)
    rows = set_trainable(model, stage, config.tower.train, images=not config.blind)
    (out / "trainable.md").write_text(trainable_table(rows))
    for line in trainable_table(rows).splitlines():
        report.note(line)
    if not any(trained for _, _, trained in rows):
        return
    role = "pretrain" if stage == "pretrain" else "train"
    samples = [s for path, images in files(config, inputs, role) for s in llava.load(path, images)]
    dataset = Conversations(samples, Images(processor, feature_cache(inputs)), config.data.max_length)
    dataset.check_lengths()
    order = Order(len(samples), optimisation, config.seed)
    module = SlothModule(model, optimisation, order.steps, config.seed)
    # made when a checkpoint has been read: a resumed run starts with the step after the last finished one
    module.train_dataloader = lambda: StepLoader(
        dataset, order, config.data.workers, module.global_step, module.global_rank, module.trainer.world_size
    )
    fit(config, module, out, report)


def fit(config: Config, module: SlothModule, out: Path, report: Reporter) -> None:
    """Lightning's part."""
    t, o, checkpoints = config.trainer, module.optimisation, out / "checkpoints"
    last = checkpoints / "last.ckpt"
    resume = last if readable(last) else None
    keep = ModelCheckpoint(checkpoints, filename=last.stem, every_n_train_steps=t.checkpoint_every,
                           enable_version_counter=False)
    trainer = L.Trainer(
        accelerator=t.accelerator, devices=int(t.devices) if t.devices.isdigit() else t.devices,
        strategy=t.strategy, precision=precision(t.precision), max_steps=module.steps, max_epochs=-1,
        accumulate_grad_batches=o.accumulate, gradient_clip_val=o.clip or None,
        callbacks=[Progress(report), keep], logger=make_logger(t.logger, out), log_every_n_steps=10,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, ckpt_path=resume, weights_only=False)
    module.model.to("cpu")
    for file in checkpoints.glob("*"):
        file.unlink()


class Progress(Callback):
    """Optimiser steps on the progress bar; the loss every ten: reading it waits for a GPU."""

    def __init__(self, report: Reporter):
        self.report, self.seen = report, 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.seen = trainer.global_step
        self.report.steps(module.steps, done=self.seen)

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        if trainer.global_step == self.seen:
            return  # a piece of a step
        self.seen = trainer.global_step
        fields = {"loss": float(trainer.callback_metrics["loss"])} if self.seen % 10 == 0 else {}
        self.report.advance(1, **fields)


def trainable_table(rows: list[tuple[str, int, bool]]) -> str:
    """What trains, as a Markdown table."""
    lines = [f"| {'part':14} | {'parameters':>13} | trained |", f"| {'-' * 14} | {'-' * 12}: | ------- |"]
    lines += [f"| {name:14} | {n:13,} | {'yes' if trained else 'no':7} |" for name, n, trained in rows]
    return "\n".join(lines) + "\n"


def precision(name: str) -> str:
    """auto: bf16 on a GPU, fp32 on the CPU."""
    if name != "auto":
        return name
    return "bf16-mixed" if torch.cuda.is_available() else "32-true"


def make_logger(name: str, out: Path) -> Logger | bool:
    """Loss curves; a resumed run adds a file beside the first one's."""
    if name == "none":
        return False
    if name == "csv":
        return CSVLogger(out, name="curves")
    if name == "tensorboard":
        from lightning.pytorch.loggers import TensorBoardLogger

        return TensorBoardLogger(out, name="curves")
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(save_dir=out, project="slothkit")


def readable(path: Path) -> bool:
    """Whether a checkpoint is there and whole; one that a full disk cut short is started over."""
    try:
        torch.load(path, map_location="cpu", weights_only=False, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError):
        return False
    return True
