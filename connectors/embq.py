"""Embedded query module (EmbQ), FlashSloth, arXiv 2412.04317.

Learned query tokens stand after each question. At the input of a middle decoder layer they read the
question's hidden states, with what they learned read the *uncompressed* patch features, and the result is
fused back into them.

    queries (S, D) --Wd--> q0 --attend--> question --a--> attend --> patches --b (tower width)--W_up--> fuse
"""

from contextlib import nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.checks import check_at_least
from compressors.errors import UsageError
from compressors.layers import compute_attention_weights
from compressors.selection import without_autocast
from connectors.fusion import Fusion, FusionName
from connectors.query_module import QueryModule, put_at_positions, register, registry, take_at_positions

__all__ = ["EmbQ", "registry"]

STD = 0.02
Masks = tuple[Tensor, Tensor]  # what a query may read: tokens (B, S, T) and patches (B, S, P)


class Attention(nn.Module):
    """Multi-head attention without output projection; values may be wider than queries and keys."""

    def __init__(self, dim: int, value_dim: int, heads: int, fp32: bool):
        super().__init__()
        self.heads, self.fp32 = heads, fp32
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj = nn.Linear(value_dim, value_dim)

    def _split_heads(self, channels: Tensor) -> Tensor:
        """(B, N, heads * d) -> (B, heads, N, d)."""
        return rearrange(channels, "b n (m d) -> b m n d", m=self.heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        """(B, S, d), (B, K, d), (B, K, v), bool (B, S, K) -> (B, S, v). An all-False mask reads all."""
        q = self._split_heads(self.q_proj(query))
        k = self._split_heads(self.k_proj(key))
        v = self._split_heads(self.v_proj(value))
        # a row that may read nothing would be NaN; it reads all, and is dropped later
        mask = (mask | ~mask.any(-1, keepdim=True)).unsqueeze(1)
        dtype = v.dtype
        if self.fp32:
            q, k, v = q.float(), k.float(), v.float()
        with without_autocast(q.device.type) if self.fp32 else nullcontext():
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).to(dtype)
        return rearrange(out, "b m n d -> b n (m d)")

    def weights(self, query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
        """For pictures: how much `forward` reads of each value, (B, heads, S, K), sum 1 over K; fp32."""
        q = self._split_heads(self.q_proj(query))
        k = self._split_heads(self.k_proj(key))
        mask = (mask | ~mask.any(-1, keepdim=True)).unsqueeze(1)
        return compute_attention_weights(q, k, mask)


class EmbQLayer(nn.Module):
    """q0 (B, S, d) reads the question t0 (B, T, d), then the patches v0 (B, P, d) -> update (B, S, C)."""

    def __init__(self, dim: int, vision_dim: int, heads: int, fp32: bool):
        super().__init__()
        self.ln_q = nn.LayerNorm(dim)
        self.ln_text = nn.LayerNorm(dim)
        self.ln_kv = nn.LayerNorm(dim)
        self.t2q_attn = Attention(dim, dim, heads, fp32)
        self.i2q_attn = Attention(dim, vision_dim, heads, fp32)

    def forward(self, q0: Tensor, t0: Tensor, v0: Tensor, features: Tensor, masks: Masks) -> Tensor:
        text = self.ln_text(t0)
        question_read = self.t2q_attn(self.ln_q(q0), text, text, masks[0])
        return self.i2q_attn(question_read, self.ln_kv(v0), features, masks[1])


class EmbQBlock(nn.Module):
    """One insertion: shared down projections, `num_layers` layers, the projection back, the fusion."""

    def __init__(
        self,
        llm_dim: int,
        vision_dim: int,
        dim: int,
        heads: int,
        num_layers: int,
        fusion: FusionName,
        stacked: bool,
        fp32: bool,
    ):
        super().__init__()
        self.stacked = stacked
        self.down_text = nn.Linear(llm_dim, dim)  # shared by queries and question
        self.down_image = nn.Linear(vision_dim, dim)
        self.layers = nn.ModuleList(EmbQLayer(dim, vision_dim, heads, fp32) for _ in range(num_layers))
        self.up = nn.Linear(vision_dim, llm_dim)
        self.fusion = Fusion(llm_dim, fusion)

    def forward(self, queries: Tensor, hidden: Tensor, features: Tensor, masks: Masks) -> Tensor:
        t0, v0 = self.down_text(hidden), self.down_image(features)
        if self.stacked:
            for layer in self.layers:
                update = layer(self.down_text(queries), t0, v0, features, masks)
                queries = self.fusion(queries, self.up(update))
            return queries
        q0 = self.down_text(queries)
        # released code: the layers see the same q0 and their updates add up, each with its own W_up bias
        update = sum(self.up(layer(q0, t0, v0, features, masks)) for layer in self.layers)
        return self.fusion(queries, update)


@register("embq")
class EmbQ(QueryModule):
    """EmbQ at one or several decoder layers; several have weights of their own each.

    dim           inner width (576 in the paper)
    num_layers    attention pairs; `stacked` runs them one after another, otherwise side by side as released
    at            decoder layer(s) at whose input it acts, 1 = the first (8 in the paper)
    fusion        replace | add | gated
    num_queries   query tokens a turn
    init          query tokens start at the dot token's embedding plus noise, or as noise alone
    heads         attention heads; None: the LLM's
    released      exactly the released module: the LLM's heads, parallel layers, addition, softmax in fp32
    """

    def __init__(
        self,
        llm_dim: int,
        vision_dim: int,
        llm_heads: int,
        llm_layers: int,
        *,
        dim: int = 576,
        num_layers: int = 1,
        at: int | tuple[int, ...] = 8,
        fusion: FusionName = "add",
        num_queries: int = 9,
        init: Literal["dot", "random"] = "dot",
        stacked: bool = False,
        heads: int | None = None,
        released: bool = False,
    ):
        super().__init__()
        layers = {at} if isinstance(at, int) else set(at)
        self.at = tuple(sorted(layers))
        if heads is None:
            heads = llm_heads
        self._check(llm_layers, heads, dim, vision_dim, num_layers, num_queries)
        if released:
            self._check_released(stacked=(stacked, False), fusion=(fusion, "add"), heads=(heads, llm_heads))
        self.num_queries = num_queries
        self.init = init
        self.blocks = nn.ModuleList()
        for _ in self.at:
            block = EmbQBlock(llm_dim, vision_dim, dim, heads, num_layers, fusion, stacked, released)
            self.blocks.append(block)
        self.tokens = nn.Parameter(torch.empty(num_queries, llm_dim))
        self.reset_parameters()

    def _check(
        self, llm_layers: int, heads: int, dim: int, vision_dim: int, num_layers: int, num_queries: int
    ) -> None:
        counts = {
            "embq.num_layers": num_layers,
            "embq.num_queries": num_queries,
            "embq.dim": dim,
            "embq.heads": heads,
        }
        check_at_least(1, **counts)
        if not self.at:
            raise UsageError("embq.at=(): give at least one decoder layer")
        for layer in self.at:
            if not 1 <= layer <= llm_layers:
                raise UsageError(
                    f"embq.at={layer}: the LLM has decoder layers 1 to {llm_layers}; choose among them"
                )
        for name, width in (("embq.dim", dim), ("the tower's width", vision_dim)):
            if width % heads:
                raise UsageError(
                    f"embq.heads={heads} does not divide {name}={width}; set embq.heads "
                    "(default: the LLM's heads) to a divisor of both"
                )

    @staticmethod
    def _check_released(**knobs: tuple[object, object]) -> None:
        for name, (value, released_value) in knobs.items():
            if value != released_value:
                raise UsageError(
                    f"embq.{name}={value}: embq.released=true has {name}={released_value}; unset one of them"
                )

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens, std=STD)

    def forward(
        self,
        hidden: Tensor,
        query_index: Tensor,
        question_mask: Tensor,
        features: Tensor,
        feature_mask: Tensor,
        insertion: int = 0,
    ) -> Tensor:
        # what no query of a row reads may be anything: nan would pass through masks as 0 * nan
        features = features.masked_fill(~feature_mask.any(1).unsqueeze(2), 0)
        queries = take_at_positions(hidden, query_index)
        masks = (question_mask, feature_mask)
        updated = self.blocks[insertion](queries, hidden, features.to(hidden.dtype), masks)
        keep = question_mask.any(-1) & feature_mask.any(-1)
        return put_at_positions(hidden, query_index, updated, keep)
