"""Gradients of zeros for parameters that a batch has not read."""

from collections.abc import Iterable

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def add_unread(hidden: Tensor, parameters: Iterable[nn.Parameter]) -> Tensor:
    """Hidden states (B, T, D) as they are, with those of `parameters` that are trained added, times 0: their
    gradients are zeros then. DistributedDataParallel waits for one of each parameter, in a batch of text
    alone, too; FSDP2 does not, and a parameter that it has sharded stays without."""
    for parameter in parameters:
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            # one number of each: a sum of all may be infinite in half precision
            hidden = hidden + 0 * parameter.flatten()[:1].sum().to(hidden)
    return hidden
