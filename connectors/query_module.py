"""The contract of a query module: learned query tokens inside the LLM updated before some decoder layers.

One that `prefuses` acts once, before the first of them, and updates questions and visual tokens, too.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from compressors.registry import Registry

registry = Registry(
    "query module",
    group="slothkit.query_modules",
    context=("llm_dim", "vision_dim", "llm_heads", "llm_layers"),
)
register = registry.register


class QueryModule(nn.Module):
    """Base class. B batch, T tokens, S = slots x Q query tokens of a row, P patches of a row's images.

    at            decoder layers (1 = the first) at whose input the module acts
    num_queries   Q, query tokens a turn
    tokens        (Q, D) what the query tokens are at the LLM's input
    init          dot: for a new model they move to the LLM's embedding of the dot; else they stay as made
    prefuses      whether it updates the tokens of questions and visual tokens, too: `at` is (1,) then, and
                  `forward` is given `visual_mask`
    """

    at: tuple[int, ...]
    prefuses: bool = False
    num_queries: int
    tokens: nn.Parameter
    init: str = "random"

    @torch.no_grad()
    def initialise(self, dot: Tensor) -> None:
        """Called for a new model with the LLM's embedding (D,) of the dot token, and once more with what is
        to be added to that where another LLM takes its place."""
        if self.init == "dot":
            self.tokens.add_(dot.to(self.tokens))

    def forward(
        self,
        hidden: Tensor,
        query_index: Tensor,
        question_mask: Tensor,
        features: Tensor,
        feature_mask: Tensor,
        insertion: int = 0,
    ) -> Tensor:
        """New hidden states (B, T, D); nothing is written in place.

        hidden         (B, T, D)  input of decoder layer `at[insertion]`
        query_index    (B, S)     positions of the query tokens in their row, -1 where a row has fewer
        question_mask  (B, S, T)  True where a query may read a token: its own turn's question
        features       (B, P, C)  uncompressed patch features of the row's images
        feature_mask   (B, S, P)  True where a query may read a patch: images up to its own turn. A query
                                  that may read none (text only) is left as it is.

        One that `prefuses` takes one more, by name:

        visual_mask    (B, S, T)  True where a query may read a visual token: of images up to its own turn
        """
        raise NotImplementedError


def read_query_tokens(module: QueryModule) -> Tensor:
    """The query tokens (Q, D). Those of a module that accelerate has offloaded are on the meta device but for
    calls, around which its hook brings them."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is None:
        return module.tokens
    hook.pre_forward(module)
    tokens: Tensor = hook.post_forward(module, module.tokens)
    return tokens


def take_at_positions(hidden: Tensor, query_index: Tensor) -> Tensor:
    """Rows of (B, T, D) at (B, S) -> (B, S, D); for index -1 an arbitrary row."""
    return hidden.gather(1, query_index.clamp(min=0).unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def put_at_positions(hidden: Tensor, query_index: Tensor, updated: Tensor, keep: Tensor) -> Tensor:
    """`hidden` with `updated` (B, S, D) at `query_index` where `keep` (B, S); out of place, static shapes."""
    slots = torch.arange(query_index.shape[1], device=hidden.device).expand_as(query_index)
    slots = torch.where(keep & (query_index >= 0), slots, -1)
    # which slot each position holds, -1 for none; amax because unused slots all point at position 0
    held = torch.full(hidden.shape[:2], -1, dtype=slots.dtype, device=hidden.device)
    held = held.scatter_reduce(1, query_index.clamp(min=0), slots, "amax")
    return torch.where((held >= 0).unsqueeze(-1), take_at_positions(updated, held), hidden)


def list_insertions(module: QueryModule) -> Iterator[tuple[int, int]]:
    """(insertion number, 0-based decoder layer) pairs."""
    return ((i, layer - 1) for i, layer in enumerate(module.at))
