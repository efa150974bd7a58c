"""Lightning's part of a training stage: the trainer, what it tells, the checkpoints it resumes from."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from compressors.errors import UsageError
from connectors.versions import switch_checkpointing
from experiments.config.devices import pick_device
from experiments.config.schema import Config
from experiments.config.schema_sections import TrainerSettings
from experiments.runtime.progress import Reporter
from experiments.stages.finite import watch_compressor
from experiments.stages.training import strategies
from experiments.stages.training.checkpoints import locate_checkpoint
from experiments.stages.training.curves import CurveMeter, open_logger
from experiments.stages.training.frozen import shrink_frozen
from experiments.stages.training.module import SlothModule
from llm_adapters.adapter import decoder_layers
from llm_adapters.modeling import FlashSlothForConditionalGeneration

LOSS_STEPS = 10  # optimiser steps between two looks at the loss: each waits for a GPU


def fit_module(
    config: Config,
    module: SlothModule,
    out: Path,
    report: Reporter,
    world: int = 0,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Lightning's part, in one of `world` processes of this node or, for 0, alone."""
    settings = config.trainer
    optimisation = module.optimisation
    last = locate_checkpoint(out)
    checkpoint = StepCheckpoint(
        last.parent,
        filename=last.stem,
        every_n_train_steps=settings.checkpoint_every,
        enable_version_counter=False,  # one file, overwritten: the name is what a resumed run looks for
    )
    logged_every = min(LOSS_STEPS, module.steps)  # a stage of fewer steps logs its last one
    placement: dict[str, Any] = strategies.place_trainer(settings, world)
    precision: Any = resolve_precision(settings)
    checkpointing = optimisation.checkpointing
    if checkpointing is None:
        checkpointing = settings.gradient_checkpointing
    # whoever has begun the stage has removed a checkpoint that must not be read
    resume = str(last) if last.exists() else None
    with (
        checkpoint_layers(module.model) if checkpointing else nullcontext(),
        compile_layers(module.model) if settings.compile else nullcontext(),
        watch_compressor(module.model.compressor, module.watch),
        open_logger(config, out, report) as logger,
        shrink_frozen(module.model, settings, precision),
    ):
        trainer = L.Trainer(
            **placement,
            precision=precision,
            max_steps=module.steps,
            max_epochs=-1,
            accumulate_grad_batches=optimisation.accumulate,
            gradient_clip_val=optimisation.clip or None,
            callbacks=[
                BadRows(config, report),
                StepProgress(report),
                CurveMeter(logged_every),
                checkpoint,
                *callbacks,
            ],
            logger=logger,
            default_root_dir=out,  # what a scheduler's requeueing left in this folder is none of the stage's
            log_every_n_steps=logged_every,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,  # `StepLoader` gives each process its share
            num_sanity_val_steps=0,
        )
        trainer.fit(module, ckpt_path=resume, weights_only=True)
    if not world:  # else the processes end, and the first one has written what was trained
        module.model.cpu()


@contextmanager
def checkpoint_layers(model: FlashSlothForConditionalGeneration) -> Iterator[None]:
    """Activation checkpointing, for as long as the model is trained."""
    switch_checkpointing(model, "enable", {"use_reentrant": False})
    try:
        yield
    finally:
        switch_checkpointing(model, "disable")


@contextmanager
def compile_layers(model: FlashSlothForConditionalGeneration) -> Iterator[None]:
    """torch.compile of each decoder layer, in place: where the work is, and one graph serves all layers. (The
    whole model as one graph of any shape took minutes more to trace, and ran no faster.)"""
    from torch._dynamo.exc import TorchDynamoException

    layers = decoder_layers(model.language_model)
    for layer in layers:
        layer.compile()
    try:
        yield
    except TorchDynamoException as error:  # no C++ compiler, say
        reason = str(getattr(error, "inner_exception", error)).strip().partition("\n")[0]
        raise UsageError(f"trainer.compile=true: {reason}; leave it out to train uncompiled") from error
    finally:
        for layer in layers:
            layer._compiled_call_impl = None  # as `compile` says it; there is no public way back


class StepCheckpoint(ModelCheckpoint):
    """Saves behind whole optimiser steps alone. Lightning's own, resumed at a step that it has saved, saves
    again behind the first piece of the next one, whose gradients are in no checkpoint."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.last_step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self.last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.last_step:
            return  # a piece of a step
        self.last_step = trainer.global_step
        super().on_train_batch_end(trainer, module, outputs, batch, batch_idx)


class StepProgress(Callback):
    """Optimiser steps on the progress bar; now and then the loss, and whether all is finite still."""

    def __init__(self, report: Reporter):
        self.report = report
        self.last_step = 0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SlothModule)  # what `fit_module` trains
        self.last_step = trainer.global_step
        self.report.announce_steps(module.steps, done=self.last_step)
        wanted = module.optimisation.max_steps or 0
        if module.steps < wanted:
            self.report.write_note(
                f"max_steps={wanted}: the data are over after step {module.steps} "
                f"(epochs={module.optimisation.epochs})"
            )

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        if trainer.global_step == self.last_step:
            return  # a piece of a step
        self.last_step = trainer.global_step
        if self.last_step % LOSS_STEPS:
            self.report.advance_steps(1)
        else:
            self.report.advance_steps(1, loss=float(trainer.callback_metrics["loss"]))
            assert isinstance(module, SlothModule)
            module.check_finite()


class BadRows(Callback):
    """Tells of each row that was left out, and ends a run that leaves out more than `data.bad_rows`."""

    def __init__(self, config: Config, report: Reporter):
        self.most = config.data.bad_rows
        self.report = report
        self.count = 0

    def on_train_batch_start(
        self,
        trainer: L.Trainer,  # noqa: ARG002  Lightning names it
        module: L.LightningModule,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        for fault in batch.pop("faults", []):
            self.count += 1
            if self.count > self.most:
                raise UsageError(f"{fault}; this process has met {self.count}, and data.bad_rows={self.most}")
            self.report.write_warning(f"left out: {fault}")


def resolve_precision(settings: TrainerSettings) -> str:
    """auto: bf16 on a GPU, fp32 on the CPU, which is also chosen where there is a GPU."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16-mixed" if pick_device(settings).type == "cuda" else "32-true"
