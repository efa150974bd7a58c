"""Queries and keys of an attention module as they would be without rotary position embeddings.

The module runs once more up to its attention function, with embeddings that turn nothing; its family's code
is not repeated. It costs the projections of one layer.
"""

import inspect
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from connectors.versions import CACHE
from llm_adapters.modes import evaluating
from llm_adapters.pruning.attention import PRUNING_CONTEXT, DispatchedAttention


class ReachedAttention(Exception):
    """The attention function was called; nothing behind it is of use."""


@dataclass
class Reached:
    """What the attention function was called with."""

    query: Tensor
    key: Tensor
    mask: Tensor | None
    arguments: dict[str, Any]


class AttentionCatcher:
    """Stands in the place of a pass's context."""

    reached: Reached | None = None

    def score_raters(
        self,
        module: DispatchedAttention,  # noqa: ARG002
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> NoReturn:
        """Called by the attention of a scoring layer."""
        self.reached = Reached(query, key, mask, arguments)
        raise ReachedAttention


def make_unturned(embeddings: object) -> Any:
    """(cos, sin), or complex numbers, that turn by no angle and keep their length, which some LLMs scale.
    UsageError for embeddings of another form."""
    if isinstance(embeddings, tuple) and len(embeddings) == 2:
        cos, sin = embeddings
        return torch.hypot(cos, sin), torch.zeros_like(sin)
    if isinstance(embeddings, Tensor) and embeddings.is_complex():
        return embeddings.abs().to(embeddings.dtype)
    raise UsageError(
        "rotary=false: the decoder layers of this language model are given no rotary position embeddings "
        "that could be left out; leave the setting out"
    )


@torch.no_grad()
def catch_unrotated(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reached | None:
    """What a scoring attention module that is called with these arguments gives its attention function when
    it has no positions; None if it never gets there."""
    names = list(inspect.signature(type(module).forward).parameters)[1:]  # without self
    arguments = {**dict(zip(names, args)), **kwargs}
    catcher = AttentionCatcher()
    arguments["position_embeddings"] = make_unturned(arguments.get("position_embeddings"))
    arguments[PRUNING_CONTEXT] = catcher
    for name in (CACHE, "past_key_values"):  # these keys are none of the cache's
        if name in arguments:
            arguments[name] = None
    # Without dropout (of adapters, say): a number drawn here would not be drawn again where activations are
    # computed a second time, and all later ones would be others.
    with evaluating(module), suppress(ReachedAttention):
        module.forward(**arguments)
    return catcher.reached
