"""LoRA, arXiv 2106.09685, by peft: stage 2 tunes low-rank adapters of the LLM instead of its weights."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from compressors.errors import UsageError, shorten
from experiments.config.schema_sections import LoRASettings


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

    check_target(llm, settings.target)
    target = list(settings.target) or "all-linear"  # peft's word for all but the output layer
    alpha: Any = settings.alpha  # peft takes fractions too
    lora_config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules=target,
    )
    torch.manual_seed(seed)  # every process of a training starts from the same adapters
    try:
        adapters = LoraModel(llm, lora_config, "default")
    except ValueError as error:
        raise explain_target(llm, settings.target) from error
    parameters = 0
    for parameter in llm.parameters():
        if parameter.requires_grad:
            parameters += parameter.numel()
    return adapters, parameters


def check_target(llm: nn.Module, target: Sequence[str]) -> None:
    """UsageError for a name that no layer has: peft is content when one of several is known."""
    paths = [f".{path}" for path, _ in llm.named_modules()]
    for name in target:
        if not any(path.endswith(f".{name}") for path in paths):
            raise explain_target(llm, [name])


def explain_target(llm: nn.Module, target: Sequence[str]) -> UsageError:
    """What to raise for names of layers that cannot have adapters."""
    linear_names = ", ".join(list_linear_names(llm))
    words = shorten(",".join(target))
    return UsageError(f"lora.target=[{words}]: no such layers in the LLM; its linear ones: {linear_names}")


def list_linear_names(llm: nn.Module) -> list[str]:
    """The last parts of the names of linear layers, as `lora.target` takes them, sorted."""
    names = set()
    for path, layer in llm.named_modules():
        if isinstance(layer, nn.Linear):
            names.add(path.rpartition(".")[2])
    return sorted(names)
