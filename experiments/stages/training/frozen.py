"""Frozen weights in half their memory: a weight that no optimiser changes needs no float32 for small steps to
add up in, and a matrix product under bf16-mixed rounds it all the same.

The float32 weights wait on the CPU and come back, so that nothing that is saved is rounded.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from experiments.config.schema_sections import TrainerSettings

SHARDING_STRATEGIES = ("fsdp", "deepspeed")  # whose shards are of one type, and gathered in half precision


def check_frozen(settings: TrainerSettings) -> None:
    """UsageError where frozen weights in bfloat16 would not be what is computed with."""
    if settings.frozen == "float32":
        return
    if settings.precision not in ("auto", "bf16-mixed"):
        raise UsageError(
            f"trainer.frozen={settings.frozen}: needs trainer.precision=bf16-mixed, not {settings.precision}"
        )
    if settings.precision == "auto" and settings.accelerator == "cpu":
        raise UsageError(
            f"trainer.frozen={settings.frozen}: trainer.accelerator=cpu trains in float32; leave it out, or "
            "set trainer.precision=bf16-mixed"
        )
    if settings.strategy in SHARDING_STRATEGIES:
        raise UsageError(
            f"trainer.frozen={settings.frozen}: trainer.strategy={settings.strategy} shards frozen weights "
            "already; leave one of them out"
        )


@contextmanager
def shrink_frozen(model: nn.Module, settings: TrainerSettings, precision: str) -> Iterator[None]:
    """Inside, the model's frozen parameters are as `trainer.frozen` says; `precision`: as Lightning has it.
    Enter with the model on the CPU."""
    originals: list[tuple[nn.Parameter, Tensor]] = []
    if settings.frozen == "bfloat16" and precision == "bf16-mixed":
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.dtype == torch.float32:
                originals.append((parameter, parameter.data))
                parameter.data = parameter.data.bfloat16()
    try:
        yield
    finally:
        for parameter, weights in originals:
            parameter.data = weights
