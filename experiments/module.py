"""What is trained, on what loss, with which optimiser: the LightningModule of both stages."""
from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor, nn
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

from experiments.config import Optimisation
from llm_adapters.modeling import FlashSlothForConditionalGeneration


def trainable_parts(stage: str, train_tower: bool = False) -> tuple[str, ...]:
    """The one place that says what trains: stage 1 aligns, stage 2 tunes all but the tower."""
    if stage == "pretrain":
        return ("compressor", "projector")
    tuned = ("compressor", "projector", "query_module", "language_model")
    return (*tuned, "vision_tower") if train_tower else tuned


def parts(model: FlashSlothForConditionalGeneration) -> Iterator[tuple[str, nn.Module]]:
    """The model's parts by name, absent ones left out."""
    names = ("vision_tower", "compressor", "projector", "query_module", "language_model")
    return ((name, part) for name in names if (part := getattr(model, name)) is not None)


def set_trainable(model: FlashSlothForConditionalGeneration, stage: str, train_tower: bool = False,
                  images: bool = True) -> list[tuple[str, int, bool]]:
    """Freeze and unfreeze; returns (part, parameters, trained) rows. Blind: the LLM alone."""
    wanted = trainable_parts(stage, train_tower) if images else ("language_model",)
    rows = []
    for name, part in parts(model):
        trained = name in wanted
        part.requires_grad_(trained)
        count = sum(p.numel() for p in part.parameters())
        rows.append((name, count, trained and count > 0))
    return rows


class SlothModule(L.LightningModule):
    """One stage of training. A micro-batch knows how many answer tokens its optimiser step has."""

    def __init__(self, model: FlashSlothForConditionalGeneration, optimisation: Optimisation, steps: int,
                 seed: int):
        super().__init__()
        self.model, self.optimisation, self.steps, self.seed = model, optimisation, steps, seed

    def on_train_start(self) -> None:
        for _, part in parts(self.model):
            part.train(any(p.requires_grad for p in part.parameters()))

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:  # noqa: ARG002
        # every step draws from its own seed, so that a resumed run draws what the uninterrupted one does
        torch.manual_seed(self.seed * 1_000_003 + batch.pop("number"))

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:  # noqa: ARG002
        pieces, items = batch.pop("pieces"), batch.pop("answer_tokens")
        # Lightning divides by `pieces`; the sum over a step's pieces is then its mean over answer tokens
        loss = self.model(**batch, num_items_in_batch=items, use_cache=False).loss * pieces
        self.log("loss", loss.detach(), prog_bar=False)
        return loss

    def configure_optimizers(self) -> dict:
        trained = [p for p in self.parameters() if p.requires_grad]
        o = self.optimisation
        optimizer = torch.optim.AdamW(trained, lr=o.lr, weight_decay=o.weight_decay, fused=True)
        warmup = round(o.warmup * self.steps)
        if o.schedule == "cosine":
            schedule = get_cosine_schedule_with_warmup(optimizer, warmup, self.steps)
        else:
            schedule = get_constant_schedule_with_warmup(optimizer, warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
