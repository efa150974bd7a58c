"""What the methods that choose or merge patches share: choices are made in float32, and carry no gradient."""
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


def choice(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator of a function of tokens (B, N, C): it sees them in float32, without autocast or gradient.

    Scores in half precision tie by the dozen, and a tie is decided by order, not by merit.
    """

    @wraps(function)
    def chosen(tokens: Tensor, *arguments: object) -> Tensor:
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            return function(tokens.float(), *arguments)

    return chosen
