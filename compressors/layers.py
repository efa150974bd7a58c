"""Layers that several compressors are built of."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.checks import check_at_least
from compressors.errors import UsageError


def initialise_parameter(parameter: nn.Parameter, values: Tensor) -> None:
    """As functions of `torch.nn.init` are where transformers loads a model: what was loaded stays."""
    if not getattr(parameter, "_is_hf_initialized", False):
        with torch.no_grad():
            parameter.copy_(values)


def make_strided_convolution(channels: int, out: int, stride: int, groups: int = 1) -> nn.Conv2d:
    """(B, channels, H, W) -> (B, out, ceil(H / stride), ceil(W / stride)) by 3x3 windows; for a stride of 3
    or more by windows of its own size without padding, so that no patch is left out: H and W must be
    multiples of it then."""
    size = max(3, stride)
    padding = 1 if stride < 3 else 0
    return nn.Conv2d(channels, out, size, stride, padding, groups=groups, bias=False)


def compute_attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """What scaled dot-product attention of queries (B, heads, N, d) weighs keys (B, heads, M, d) with, in
    float32: (B, heads, N, M). mask: True where a key is read."""
    scores = query.float() @ key.float().mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1)


class Attention(nn.Module):
    """Multi-head attention, queries, keys and values given one by one, without residual or norm.

    `in_dim` channels are read through `heads` heads of `head_dim`, and come out as `out_dim`.

    kv_heads   fewer heads for keys and values, each shared by heads / kv_heads query heads; None: as many
    bias       of all four projections
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        heads: int,
        head_dim: int,
        *,
        kv_heads: int | None = None,
        bias: bool = True,
    ):
        super().__init__()
        if kv_heads is None:
            kv_heads = heads
        check_at_least(1, heads=heads, head_dim=head_dim, kv_heads=kv_heads)
        if heads % kv_heads:
            raise UsageError(f"kv_heads={kv_heads} does not divide heads={heads}")
        self.heads = heads
        self.kv_heads = kv_heads
        self.query = nn.Linear(in_dim, heads * head_dim, bias)
        self.key = nn.Linear(in_dim, kv_heads * head_dim, bias)
        self.value = nn.Linear(in_dim, kv_heads * head_dim, bias)
        self.out = nn.Linear(heads * head_dim, out_dim, bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, in_dim) and twice (B, M, in_dim) -> (B, N, out_dim); mask (B, 1, 1, M): what is read."""
        q = rearrange(self.query(query), "b n (h d) -> b h n d", h=self.heads)
        k = rearrange(self.key(key), "b n (h d) -> b h n d", h=self.kv_heads)
        v = rearrange(self.value(value), "b n (h d) -> b h n d", h=self.kv_heads)
        shared = self.kv_heads != self.heads
        read = F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=shared)  # (B, heads, N, head_dim)
        return self.out(rearrange(read, "b h n d -> b n (h d)"))

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `forward` weighs the memory with, float32: (B, heads, N, M)."""
        q = rearrange(self.query(query), "b n (h d) -> b h n d", h=self.heads)
        k = rearrange(self.key(key), "b n (h d) -> b h n d", h=self.kv_heads)
        return compute_attention_weights(q, k.repeat_interleave(self.heads // self.kv_heads, 1), mask)


class GatedMLP(nn.Module):
    """SiLU(gate(x)) * up(x), back down, without biases."""

    def __init__(self, in_dim: int, width: int, out_dim: int):
        super().__init__()
        self.gate = nn.Linear(in_dim, width, bias=False)
        self.up = nn.Linear(in_dim, width, bias=False)
        self.down = nn.Linear(width, out_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.silu(self.gate(x)) * self.up(x)
        return self.down(gated)
