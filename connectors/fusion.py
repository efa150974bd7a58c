"""How an update enters the query tokens: replacement, addition, gated addition (FlashSloth, Table 5)."""

from typing import Literal

import torch
from torch import Tensor, nn

FusionName = Literal["replace", "add", "gated"]


class Gate(nn.Linear):
    """Starts at zero. A class of its own, since transformers, which initialises a model's modules once more,
    never asks one that has no parameters itself."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Fusion(nn.Module):
    """(queries, update), both (B, S, D) -> (B, S, D).

    replace   update
    add       queries + update
    gated     queries + sigmoid(w [queries; update] + b) * update, one gate a query, starting at one half
    """

    def __init__(self, dim: int, name: FusionName):
        super().__init__()
        self.name = name
        self.gate = Gate(2 * dim, 1) if name == "gated" else None

    def forward(self, queries: Tensor, update: Tensor) -> Tensor:
        if self.name == "replace":
            return update
        if self.gate is not None:
            update = self.gate(torch.cat([queries, update], -1)).sigmoid() * update
        return queries + update
