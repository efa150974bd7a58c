"""What is trained, on what loss, with which optimiser: the LightningModule of both stages."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.lr_scheduler import LambdaLR

from experiments.config.schema_sections import OptimisationSettings
from experiments.data.streaming.order import StreamOrder
from experiments.stages.finite import FiniteWatch, check_finite_weights
from experiments.stages.training.query_warmup import QueryWarmup
from experiments.stages.training.strategies import make_precision_policy, shard_model
from experiments.stages.training.teacher import Teacher
from experiments.store.store import NotFinite
from llm_adapters.adapter import decoder_layers
from llm_adapters.modeling import FlashSlothForConditionalGeneration

LOWEST_SCALE = 1.0  # of fp16's gradients; below it DeepSpeed and Megatron-LM give up, too


class TrainablePart(NamedTuple):
    """A part of a model and whether a stage trains it."""

    name: str
    parameters: int
    trained: bool


def choose_trainable_parts(stage: str, train_tower: bool = False) -> tuple[str, ...]:
    """The one place that says what trains: stage 1 aligns, stage 2 tunes all but the tower."""
    if stage == "pretrain":
        return ("compressor", "projector")
    tuned = ("compressor", "projector", "query_module", "language_model")
    if train_tower:
        return (*tuned, "vision_tower")
    return tuned


def list_model_parts(model: FlashSlothForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    """The model's parts by name, absent ones left out."""
    for name in ("vision_tower", "compressor", "projector", "query_module", "language_model"):
        part = getattr(model, name)
        if part is not None:
            yield name, part


def set_trainable(
    model: FlashSlothForConditionalGeneration, stage: str, train_tower: bool = False, images: bool = True
) -> list[TrainablePart]:
    """Freeze and unfreeze the parts for a stage; returns all of them. Without `images` (a blind cell) the LLM
    alone is trained."""
    names: tuple[str, ...] = ("language_model",)
    if images:
        names = choose_trainable_parts(stage, train_tower)
    parts = []
    for name, part in list_model_parts(model):
        part.requires_grad_(name in names)
        count = sum(parameter.numel() for parameter in part.parameters())
        parts.append(TrainablePart(name, count, name in names and count > 0))
    return parts


def format_trainable_table(parts: Sequence[TrainablePart]) -> str:
    """What trains, as a Markdown table."""
    lines = [f"| {'part':14} | {'parameters':>13} | trained |", f"| {'-' * 14} | {'-' * 12}: | ------- |"]
    for part in parts:
        trained = "yes" if part.trained else "no"
        lines.append(f"| {part.name:14} | {part.parameters:13,} | {trained:7} |")
    return "\n".join(lines) + "\n"


def list_checkpoint_names(model: nn.Module) -> set[str]:
    """What of a stage's model is in its checkpoint: all but frozen parameters, by the module's names."""
    frozen = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad:
            frozen.add(name)
    return {f"model.{name}" for name in model.state_dict() if name not in frozen}


def compute_rate_factor(step: int, warmup: int, steps: int, schedule: str) -> float:
    """What the learning rate is multiplied by in a step, counted from 0: up from 0 to 1 in `warmup` steps,
    then 1, or with `schedule` cosine down to 0 at `steps`."""
    # transformers has the same, but its module of schedules imports peft, which imports bitsandbytes: seconds
    # of every process that trains, and a warning of its own
    if step < warmup:
        return step / warmup
    if schedule != "cosine":
        return 1.0
    progress = (step - warmup) / max(1, steps - warmup)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def stop_dropout(layer: nn.Module) -> None:
    """Let a layer draw nothing itself, whatever its flag of training says: OPT, BLOOM and Falcon have their
    rates as numbers of the layer, beside modules with flags of their own."""
    for name, value in list(vars(layer).items()):
        if "dropout" in name and isinstance(value, float):
            setattr(layer, name, 0.0)


class SlothModule(L.LightningModule):
    """One stage of training. A micro-batch knows how many answer tokens its optimiser step has.

    steps         optimiser steps of the whole stage
    seed          what a step draws follows from it and the step's number
    query_warmup  which rows are trained without their visual tokens; None: none
    teacher       whose probabilities of the answers are learned too; None: none
    stream        of the rows, of which a checkpoint keeps the place; None: they are in memory
    """

    def __init__(
        self,
        model: FlashSlothForConditionalGeneration,
        optimisation: OptimisationSettings,
        steps: int,
        seed: int,
        query_warmup: QueryWarmup | None = None,
        teacher: Teacher | None = None,
        stream: StreamOrder | None = None,
    ):
        super().__init__()
        self.model = model
        self.optimisation = optimisation
        self.steps = steps
        self.seed = seed
        self.query_warmup = query_warmup
        self.teacher = teacher
        self.stream = stream
        self.step_loss: Tensor | float = 0.0
        self.tokens = 0  # that this process has trained on, without padding
        self.gradient_norm: Tensor | None = None  # of the last optimiser step, before it was clipped
        self.step_divergence: Tensor | float = 0.0
        self.watch = FiniteWatch()
        self.strict_loading = (
            False  # a checkpoint has what is trained; `remove_bad_checkpoint` compares names
        )

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            policy = make_precision_policy(self.trainer.precision)
            shard_model(self.model, self.device_mesh["data_parallel"], policy)

    def on_train_start(self) -> None:
        if self.teacher is not None:
            self.teacher.place(self.device, str(self.trainer.precision))
        for _, part in list_model_parts(self.model):
            trained = [parameter.requires_grad for parameter in part.parameters()]
            # a frozen part drops nothing out; a compressor without weights may draw in training, too
            part.train(any(trained) or not trained)
        for layer in decoder_layers(self.model.language_model):
            # a frozen LLM computes its activations again too, but draws no dropout: the flag of a layer is
            # what its checkpointing asks for
            if getattr(layer, "gradient_checkpointing", False) and not layer.training:
                stop_dropout(layer)
                layer.training = True

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:  # noqa: ARG002
        # every step draws from its own seed, so that a resumed run draws what the uninterrupted one does
        number = batch.pop("number")
        self.tokens += batch.pop("tokens", 0)
        self.watch.step = number // self.optimisation.accumulate + 1
        torch.manual_seed(self.seed * 1_000_003 + number + self.global_rank * 1_000_000_007)
        if not number % self.optimisation.accumulate:  # the first piece of a step
            self.model.compressor.begin_step()
        self.model.compressor.draw()
        if self.query_warmup is not None:
            rows, tokens = batch["input_ids"].shape
            hidden_visual = self.query_warmup.draw_hidden(rows, tokens, number, self.global_rank)
            # without the argument where nothing is hidden: attention can take its causal kernel again
            if hidden_visual.any():
                batch["hidden_visual"] = hidden_visual.to(self.device, non_blocking=True)
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1:
            # each process has counted its own share of the step, and gradients are averaged over processes
            answer_tokens = torch.tensor(batch["answer_tokens"], device=self.device)
            batch["answer_tokens"] = strategy.reduce(answer_tokens, reduce_op="sum")
            batch["pieces"] *= self.trainer.world_size
        if strategy.handles_gradient_accumulation:  # DeepSpeed, which divides as well as Lightning
            batch["pieces"] *= self.trainer.accumulate_grad_batches

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        pieces = batch.pop("pieces")
        answer_tokens = batch.pop("answer_tokens")
        if self.teacher is not None:
            batch["lesson"] = self.teacher.make_lesson(batch.pop("taught"), batch)
        output = self.model(**batch, num_items_in_batch=answer_tokens, use_cache=False)
        loss = output.loss
        self.watch.note("loss", loss)
        self.step_loss += loss.detach()
        if self.teacher is not None:
            self.step_divergence += output.divergence
        if not (batch_idx + 1) % self.optimisation.accumulate:
            self.log("loss", self.step_loss, prog_bar=False, sync_dist=True, reduce_fx="sum")
            self.step_loss = 0.0
            if self.teacher is not None:
                self.log("divergence", self.step_divergence, prog_bar=False, sync_dist=True, reduce_fx="sum")
                self.step_divergence = 0.0
        # Lightning divides by `pieces`; the sum over a step's pieces is then its mean over answer tokens
        return loss * pieces

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,  # noqa: ARG002  Lightning names it
    ) -> None:
        if self.trainer.strategy.handles_gradient_accumulation:  # DeepSpeed, which clips as well
            return
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if gradient_clip_val:
            norm = clip_grad_norm_(parameters, gradient_clip_val)
        else:
            norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.gradient_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.find_scaler() is None:  # which skips steps whose gradients are not finite
            self.watch.note("gradient norm", self.gradient_norm)

    def find_scaler(self) -> Any:
        """What scales the gradients of fp16; None where nothing does."""
        plugin = self.trainer.precision_plugin
        return plugin.scaler if isinstance(plugin, MixedPrecision) else None

    def check_finite(self) -> None:
        """NotFinite if a step so far, or a weight, is not finite. Waits for the device."""
        self.watch.check()
        scaler = self.find_scaler()
        if scaler is not None and scaler.get_scale() < LOWEST_SCALE:
            raise NotFinite(f"step {self.watch.step}: fp16 gradients overflow at any scale")
        check_finite_weights(self.model, f"step {self.watch.step}", trained_alone=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()  # a run that has diverged leaves the checkpoint before it
        # what is frozen is what the stage began with, and may be ten times what it trains
        frozen = checkpoint["state_dict"].keys() - list_checkpoint_names(self.model)
        for name in frozen:
            del checkpoint["state_dict"][name]
        if self.stream is not None:
            checkpoint["stream"] = self.stream.save_mark(self.global_step)

    def on_train_end(self) -> None:
        self.check_finite()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # they name files to be removed: what a checkpoint says of other files is not followed
        checkpoint["callbacks"] = {}
        if self.stream is not None:
            self.stream.load_mark(checkpoint.get("stream"))

    def configure_optimizers(self) -> Any:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        settings = self.optimisation
        optimizer = torch.optim.AdamW(
            trained,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            # a fused step unscales gradients itself, but fp16's must be unscaled before they are clipped
            fused=self.trainer.precision != "16-mixed",
        )
        warmup = round(settings.warmup * self.steps)
        factor = partial(compute_rate_factor, warmup=warmup, steps=self.steps, schedule=settings.schedule)
        schedule = LambdaLR(optimizer, factor)
        # Lightning would step the schedule once an epoch
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
