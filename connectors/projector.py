"""Projectors: visual tokens (B, N, C') -> the LLM's width (B, N, D). Names as in LLaVA; N does not change."""

from torch import Tensor, nn

from compressors.errors import UsageError
from compressors.registry import Registry

registry = Registry("projector", group="slothkit.projectors", context=("in_dim", "llm_dim"))
register = registry.register


@register("linear")
class LinearProjector(nn.Linear):
    """One linear map. Keys: weight, bias."""

    def __init__(self, in_dim: int, llm_dim: int, bias: bool = True):
        super().__init__(in_dim, llm_dim, bias=bias)
        self.in_dim, self.out_dim = in_dim, llm_dim


@register("mlp2x_gelu")
class MlpProjector(nn.Sequential):
    """Linear-GELU-Linear (exact GELU), LLaVA-1.5's and FlashSloth's; `depth` is the number of linear maps.

    Keys: 0.*, 2.*, ... as in the released `mm_projector`.
    """

    def __init__(self, in_dim: int, llm_dim: int, depth: int = 2):
        if depth < 1:
            raise UsageError(f"mlp2x_gelu.depth={depth}: must be at least 1")
        layers: list[nn.Module] = [nn.Linear(in_dim, llm_dim)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(llm_dim, llm_dim)]
        super().__init__(*layers)
        self.in_dim, self.out_dim = in_dim, llm_dim


@register("identity")
class IdentityProjector(nn.Module):
    """For a compressor that ends at the LLM's width (`projects = True`). UsageError if the widths differ."""

    def __init__(self, in_dim: int, llm_dim: int):
        super().__init__()
        if in_dim != llm_dim:
            raise UsageError(
                f"projector=identity: the visual tokens are {in_dim} wide and the LLM {llm_dim}; "
                "choose linear or mlp2x_gelu"
            )
        self.in_dim, self.out_dim = in_dim, llm_dim

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> the same."""
        return tokens
