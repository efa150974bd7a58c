"""How an update enters the query tokens: replacement, addition, or addition through a gate (FlashSloth, Table 5)."""
from typing import Literal

import torch
from torch import Tensor, nn

FusionName = Literal["replace", "add", "gated"]


class Fusion(nn.Module):
    """(queries, update), both (B, S, D) -> (B, S, D).

    replace   update
    add       queries + update
    gated     queries + sigmoid(w [queries; update] + b) * update, one gate a query, starting at one half
    """

    def __init__(self, dim: int, name: FusionName):
        super().__init__()
        self.name = name
        self.gate = nn.Linear(2 * dim, 1) if name == "gated" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.gate is not None:
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)

    def forward(self, queries: Tensor, update: Tensor) -> Tensor:
        if self.name == "replace":
            return update
        if self.gate is not None:
            update = self.gate(torch.cat([queries, update], -1)).sigmoid() * update
        return queries + update
