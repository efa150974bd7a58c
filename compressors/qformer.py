"""Q-Former, BLIP-2, arXiv 2301.12597; with the question as input: InstructBLIP, arXiv 2305.06500.

Learned queries pass through post-norm BERT layers; in every second layer they read the patches by
cross-attention. With `text=True` the question's embeddings join the queries in self-attention, with a
feed-forward network of their own, so that the queries look for what is asked.

    layer:  [queries, text] - self-attention -+- queries - cross-attention (patches) - FFN -+- [queries, text]
                                              +- text ------------------------------- FFN --+

    H*W -> Q        729 -> 32
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.base import Compressor, MaybeTensor, register
from compressors.checks import at_least, divides, given, probability
from compressors.errors import UsageError

EPS, STD = 1e-12, 0.02  # BERT's layer norm and initialisation


class Attention(nn.Module):
    """Multi-head attention of `x` over `memory`, residual, layer norm."""

    def __init__(self, width: int, memory_width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.key, self.value = nn.Linear(memory_width, width), nn.Linear(memory_width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, width), (B, M, memory_width), mask (B, 1, 1, M) True where readable -> (B, N, width)."""
        query, key, value = (self._split(y) for y in (self.query(x), self.key(memory), self.value(memory)))
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        read = self.out(rearrange(read, "b heads n d -> b n (heads d)"))
        return self.norm(x + F.dropout(read, self.dropout, self.training))

    def weights(self, x: Tensor, memory: Tensor) -> Tensor:
        """What `forward` weighs the memory with, without dropout, float32: (B, heads, N, M)."""
        query, key = self._split(self.query(x)), self._split(self.key(memory))
        return (query.float() @ key.float().mT * query.shape[-1] ** -0.5).softmax(-1)


class FeedForward(nn.Module):
    """Linear - GELU - Linear of four times the width, residual, layer norm."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.mlp(x)))


class Layer(nn.Module):
    """One layer, without cross-attention if `dim` is None; `text` False: no later layer reads the text."""

    def __init__(self, width: int, dim: int | None, heads: int, dropout: float, text: bool):
        super().__init__()
        self.self_attention = Attention(width, width, heads, dropout)
        self.cross_attention = Attention(width, dim, heads, dropout) if dim is not None else None
        self.query_ffn = FeedForward(width, dropout)
        self.text_ffn = FeedForward(width, dropout) if text else None

    def mix(self, states: Tensor, num_queries: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Self-attention of (B, Q + T, width), split: queries (B, Q, width) and text (B, T or 0, width)."""
        kept = states if self.text_ffn is not None else states[:, :num_queries]
        mixed = self.self_attention(kept, states, mask)
        return mixed[:, :num_queries], mixed[:, num_queries:]

    def forward(self, states: Tensor, patches: Tensor, num_queries: int, mask: Tensor | None) -> Tensor:
        queries, text = self.mix(states, num_queries, mask)
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, patches)
        queries = self.query_ffn(queries)
        return queries if self.text_ffn is None else torch.cat([queries, self.text_ffn(text)], 1)


@register("qformer")
class QFormer(Compressor):
    """`num_queries` learned queries of `width`; they read the patches in every `cross_every`-th layer.

    `text=True` lets the queries read the question, of at most `max_text` tokens. Defaults are BLIP-2's.
    """

    def __init__(
        self,
        dim: int,
        llm_dim: int | None = None,
        *,
        num_queries: int = 32,
        num_layers: int = 12,
        heads: int = 12,
        width: int = 768,
        cross_every: int = 2,
        dropout: float = 0.1,
        text: bool = False,
        max_text: int = 512,
    ):
        super().__init__()
        at_least(1, num_queries=num_queries, num_layers=num_layers)
        at_least(1, cross_every=cross_every, max_text=max_text)
        divides(heads, width)
        probability(dropout=dropout)
        self.out_dim, self.num_queries, self.cross_every = width, num_queries, cross_every
        self.needs_text, self.max_text = text, max_text
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.norm, self.dropout = nn.LayerNorm(width, eps=EPS), nn.Dropout(dropout)
        if text:
            self.text_projection = nn.Linear(given(llm_dim, "llm_dim", "qformer with text=true"), width)
            self.text_position = nn.Embedding(max_text, width)
        self.layers = nn.ModuleList(
            Layer(width, None if i % cross_every else dim, heads, dropout, text and i < num_layers - 1)
            for i in range(num_layers)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """BERT's: N(0, 0.02) matrices and queries (equal queries would stay equal), zero biases."""
        nn.init.normal_(self.queries, std=STD)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=STD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def num_tokens(self, height: int, width: int) -> int:
        return self.num_queries

    def _embed_text(self, text: Tensor, mask: Tensor) -> Tensor:
        """(B, T, llm_dim) -> (B, T, width). Positions count what the mask shows, wherever the padding is."""
        if text.shape[1] > self.max_text:
            raise UsageError(f"max_text={self.max_text}: too short for a question of {text.shape[1]} tokens")
        position = (mask.long().cumsum(1) - 1).clamp(min=0)
        return self.text_projection(text.to(self.queries.dtype)) + self.text_position(position)

    def _start(self, batch: int, text: MaybeTensor, text_mask: MaybeTensor) -> tuple[Tensor, MaybeTensor]:
        """What enters the first layer, (B, Q + T, width), and which of it may be read, (B, 1, 1, Q + T)."""
        states, mask = self.queries.expand(batch, -1, -1), None
        if self.needs_text:
            if text is None:
                raise UsageError("qformer with text=true needs the question's embeddings")
            seen = torch.ones_like(text[..., 0]) if text_mask is None else text_mask
            states = torch.cat([states, self._embed_text(text, seen)], 1)
            mask = rearrange(F.pad(seen.bool(), (self.num_queries, 0), value=True), "b n -> b 1 1 n")
        return self.dropout(self.norm(states)), mask

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches = rearrange(features, "b h w c -> b (h w) c")
        states, mask = self._start(len(patches), text, text_mask)
        for layer in self.layers:
            states = layer(states, patches, self.num_queries, mask)
        return states

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """The last cross-attention, the mean over its heads and queries."""
        patches = rearrange(features, "b h w c -> b (h w) c")
        states, mask = self._start(len(patches), text, text_mask)
        last = (len(self.layers) - 1) // self.cross_every * self.cross_every
        for layer in self.layers[:last]:
            states = layer(states, patches, self.num_queries, mask)
        queries, _ = self.layers[last].mix(states, self.num_queries, mask)
        weights = self.layers[last].cross_attention.weights(queries, patches).mean((1, 2))
        return rearrange(weights, "b (h w) -> b h w", h=features.shape[1])
