"""Tensors that follow from sizes alone, made once for each of them."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch._guards import detect_fake_mode

from compressors.selection import without_autocast

KEPT_AT_MOST = 256  # of a function; a model that sees more grids than that makes them anew


def keep_constant(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Decorator of a function of numbers and, last, a device: its tensors are kept, and must not be changed.

    They are the process's, not a module's: no state_dict has them, a copied or moved module finds those of
    its device. Where tensors stand for others (compilation, export, shapes without values) they are made
    anew, and belong to what is traced."""
    constants: dict[tuple[object, ...], Tensor] = {}  # by the function's arguments

    @wraps(make)
    def find_or_make(*arguments: Any) -> Tensor:
        device = arguments[-1].type
        if torch.compiler.is_compiling() or detect_fake_mode() is not None:
            with without_autocast(device):
                return make(*arguments)
        constant = constants.get(arguments)
        if constant is None:
            # one that inference mode has made could not take part in training later, and one that autocast
            # has rounded would serve passes without it
            with torch.inference_mode(False), torch.no_grad(), without_autocast(device):
                constant = make(*arguments)
            if len(constants) < KEPT_AT_MOST:
                constants[arguments] = constant
        return constant

    return find_or_make
