"""What is trained, on what loss, with which optimiser: the LightningModule of both stages."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from experiments.config.schema import OptimisationSettings
from experiments.stages.strategies import shard_model
from llm_adapters.adapter import decoder_layers
from llm_adapters.modeling import FlashSlothForConditionalGeneration


def choose_trainable_parts(stage: str, train_tower: bool = False) -> tuple[str, ...]:
    """The one place that says what trains: stage 1 aligns, stage 2 tunes all but the tower."""
    if stage == "pretrain":
        return ("compressor", "projector")
    tuned = ("compressor", "projector", "query_module", "language_model")
    return (*tuned, "vision_tower") if train_tower else tuned


def list_model_parts(model: FlashSlothForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    """The model's parts by name, absent ones left out."""
    names = ("vision_tower", "compressor", "projector", "query_module", "language_model")
    return ((name, part) for name in names if (part := getattr(model, name)) is not None)


def set_trainable(
    model: FlashSlothForConditionalGeneration, stage: str, train_tower: bool = False, images: bool = True
) -> list[tuple[str, int, bool]]:
    """Freeze and unfreeze; returns (part, parameters, trained) rows. Blind: the LLM alone."""
    wanted = choose_trainable_parts(stage, train_tower) if images else ("language_model",)
    rows = []
    for name, part in list_model_parts(model):
        trained = name in wanted
        part.requires_grad_(trained)
        count = sum(p.numel() for p in part.parameters())
        rows.append((name, count, trained and count > 0))
    return rows


class SlothModule(L.LightningModule):
    """One stage of training. A micro-batch knows how many answer tokens its optimiser step has."""

    def __init__(
        self,
        model: FlashSlothForConditionalGeneration,
        optimisation: OptimisationSettings,
        steps: int,
        seed: int,
    ):
        super().__init__()
        self.model, self.optimisation, self.steps, self.seed = model, optimisation, steps, seed
        self.step_loss: Tensor | float = 0.0

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            shard_model(self.model, self.device_mesh["data_parallel"])

    def on_train_start(self) -> None:
        for _, part in list_model_parts(self.model):
            trained = [p.requires_grad for p in part.parameters()]
            part.train(any(trained) or not trained)  # a compressor without weights may draw in training, too
        for layer in decoder_layers(self.model.language_model):
            # a frozen LLM computes its activations again too, but draws no dropout: the flag of a layer is
            # what its checkpointing asks for, dropout asks its own
            layer.training |= getattr(layer, "gradient_checkpointing", False)

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:  # noqa: ARG002
        # every step draws from its own seed, so that a resumed run draws what the uninterrupted one does
        torch.manual_seed(self.seed * 1_000_003 + batch.pop("number") + self.global_rank * 1_000_000_007)
        self.model.compressor.draw()
        strategy = self.trainer.strategy
        if self.trainer.world_size > 1:
            # each process has counted its own share of the step, and gradients are averaged over processes
            items = torch.tensor(batch["answer_tokens"], device=self.device)
            batch["answer_tokens"] = strategy.reduce(items, reduce_op="sum")
            batch["pieces"] *= self.trainer.world_size
        if strategy.handles_gradient_accumulation:  # DeepSpeed, which divides as well as Lightning
            batch["pieces"] *= self.trainer.accumulate_grad_batches

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        pieces, items = batch.pop("pieces"), batch.pop("answer_tokens")
        loss = self.model(**batch, num_items_in_batch=items, use_cache=False).loss
        self.step_loss += loss.detach()
        if not (batch_idx + 1) % self.optimisation.accumulate:
            self.log("loss", self.step_loss, prog_bar=False, sync_dist=True, reduce_fx="sum")
            self.step_loss = 0.0
        # Lightning divides by `pieces`; the sum over a step's pieces is then its mean over answer tokens
        return loss * pieces

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        plugin = self.trainer.precision_plugin
        if gradient_clip_val and isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            # bf16: nothing is scaled, but Lightning refuses to clip for a fused optimiser as if it were
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.parameters() if p.requires_grad]
        o = self.optimisation
        fused = self.trainer.precision != "16-mixed"  # there gradients are scaled, and clipped unscaled
        optimizer = torch.optim.AdamW(trained, lr=o.lr, weight_decay=o.weight_decay, fused=fused)
        warmup = round(o.warmup * self.steps)
        if o.schedule == "cosine":
            schedule = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps)
        else:
            schedule = get_constant_schedule_with_warmup(optimizer, warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
