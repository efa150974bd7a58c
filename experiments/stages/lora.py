"""LoRA, arXiv 2106.09685, by peft: stage 2 tunes low-rank adapters of the LLM instead of its weights."""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from compressors.errors import UsageError
from experiments.config.schema import LoRASettings


def check_peft(settings: LoRASettings) -> None:
    """UsageError when peft is wanted and not there."""
    if settings.rank and find_spec("peft") is None:
        raise UsageError(
            f"lora.rank={settings.rank}: peft is not installed; pip install peft, or set lora.rank=0"
        )


def add_adapters(llm: nn.Module, settings: LoRASettings, seed: int) -> tuple[Any, int]:
    """Put adapters into `llm`, frozen but for them. Returns peft's handle, whose `merge_and_unload()` makes
    `llm` plain again with the adapters in its weights, and their number of parameters.

    The layers are replaced where they are: hooks, and whoever holds `llm`, do not notice. UsageError when
    `lora.target` names no linear layer."""
    from peft import LoraConfig, LoraModel

    target = list(settings.target) or "all-linear"
    alpha: Any = settings.alpha  # peft takes fractions too
    lora_config = LoraConfig(
        r=settings.rank, lora_alpha=alpha, lora_dropout=settings.dropout, target_modules=target
    )
    torch.manual_seed(seed)  # every process of a training starts from the same adapters
    try:
        adapters = LoraModel(llm, lora_config, "default")
    except ValueError as error:
        linear = {name.rpartition(".")[2] for name, m in llm.named_modules() if isinstance(m, nn.Linear)}
        raise UsageError(
            f"lora.target={target}: no such layers in the LLM; its linear ones: {', '.join(sorted(linear))}"
        ) from error
    return adapters, sum(p.numel() for p in llm.parameters() if p.requires_grad)
