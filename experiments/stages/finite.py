"""Nothing that is not finite is kept: a nan or an infinity ends the stage before it writes a result.

A step only notes on the device whether its values are finite; that is read where the loss is read anyway, and
before anything is kept, so that no step waits for a GPU.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from compressors.base import Compressor
from experiments.config.schema import Config
from experiments.store.store import NotFinite

NEVER = torch.iinfo(torch.int64).max  # the step of what was always finite


class FiniteWatch:
    """Remembers the first step in which a value was not finite.

    step         the one under way, counted from 1
    first_steps  int64 () on the device, by what was noted
    """

    def __init__(self) -> None:
        self.step = 0
        self.first_steps: dict[str, Tensor] = {}

    def note(self, name: str, values: Tensor) -> None:
        """Look at values of any shape, without waiting for the device."""
        finite = values.detach().isfinite().all()
        first_step = torch.where(finite, NEVER, self.step)
        if name in self.first_steps:
            first_step = torch.minimum(self.first_steps[name], first_step)
        self.first_steps[name] = first_step

    def find_first(self) -> tuple[str, int] | None:
        """What was not finite first, and in which step; None if all was finite. Waits for the device."""
        if not self.first_steps:
            return None
        steps = torch.stack(list(self.first_steps.values())).tolist()
        # of one step the first that was noted: the others follow from it
        step, name = min(zip(steps, self.first_steps), key=lambda pair: pair[0])
        return None if step == NEVER else (name, step)

    def check(self) -> None:
        """NotFinite if anything that was noted is not finite. Waits for the device."""
        first = self.find_first()
        if first is not None:
            name, step = first
            raise NotFinite(f"step {step}: the {name} is not finite")


@contextmanager
def watch_compressor(compressor: Compressor, watch: FiniteWatch) -> Iterator[None]:
    """Everything that the compressor returns meanwhile is noted."""
    name = f"output of compressor '{compressor.registered_name}'"
    hook = compressor.register_forward_hook(lambda _module, _arguments, output: watch.note(name, output))
    try:
        yield
    finally:
        hook.remove()


def find_not_finite(tensors: Mapping[str, Tensor], buffers: Collection[str] = ()) -> str | None:
    """The name of a tensor with a nan or an infinity; None if there is none. Waits for the device once.

    A negative infinity in one of the `buffers` may be a mask's and does not count.
    """
    values: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            tensor = tensor.to_local()  # the other processes look at theirs
        if tensor.is_floating_point() and tensor.numel():
            values[name] = tensor.amax() if name in buffers else tensor
    largest = get_total_norm(list(values.values()), math.inf)
    if largest.isfinite():
        return None
    return next(name for name, value in values.items() if not value.isfinite().all())


def check_finite_weights(model: nn.Module, when: str, trained_alone: bool = False) -> None:
    """NotFinite if a weight or saved buffer of the model is not finite; with `trained_alone` frozen weights
    are not looked at."""
    buffers = {name for name, _ in model.named_buffers()}
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not trained_alone or tensor.requires_grad or name in buffers:
            tensors[name] = tensor.detach()
    fault = find_not_finite(tensors, buffers)
    if fault is not None:
        raise NotFinite(f"{when}: {fault} is not finite")


@contextmanager
def explain_divergence(config: Config, stage: str, checkpoint: Path | None) -> Iterator[None]:
    """A NotFinite that is raised inside says what to change, and which checkpoint the run went on from."""
    origin = ""
    if checkpoint is not None:
        origin = f"; this run went on from {checkpoint}, delete it to train from the first step again"
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{error}; {list_remedies(config, stage, str(error))}{origin}") from error


def list_remedies(config: Config, stage: str, fault: str) -> str:
    """What may be changed in a stage that has diverged."""
    optimisation = getattr(config, stage)
    remedies = [f"lower {stage}.lr={optimisation.lr:g}"]
    if optimisation.clip:
        remedies.append(f"lower {stage}.clip={optimisation.clip:g}")
    else:
        remedies.append(f"set {stage}.clip=1")
    if config.trainer.precision.startswith("16"):
        remedies.append(f"take trainer.precision=bf16-mixed instead of {config.trainer.precision}")
    if "compressor" in fault:
        remedies.append("mend the compressor")
    return ", or ".join(remedies)
