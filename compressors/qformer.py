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
from compressors.checks import check_at_least, check_heads_divide, check_probability, require_llm_dim
from compressors.errors import UsageError
from compressors.layers import compute_attention_weights

# BERT's layer norm and initialisation
EPS = 1e-12
STD = 0.02


class Attention(nn.Module):
    """Multi-head attention of `x` over `memory`, residual, layer norm."""

    def __init__(self, width: int, memory_width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def _split_heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b n (heads d) -> b heads n d", heads=self.heads)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, width), (B, M, memory_width), mask (B, 1, 1, M) True where readable -> (B, N, width)."""
        query = self._split_heads(self.query(x))
        key = self._split_heads(self.key(memory))
        value = self._split_heads(self.value(memory))
        dropout = self.dropout if self.training else 0.0
        read = F.scaled_dot_product_attention(query, key, value, mask, dropout)
        read = self.out(rearrange(read, "b heads n d -> b n (heads d)"))
        return self.norm(x + F.dropout(read, self.dropout, self.training))

    def weights(self, x: Tensor, memory: Tensor) -> Tensor:
        """What `forward` weighs the memory with, without dropout, float32: (B, heads, N, M)."""
        query = self._split_heads(self.query(x))
        key = self._split_heads(self.key(memory))
        return compute_attention_weights(query, key)


class FeedForward(nn.Module):
    """Linear - GELU - Linear of four times the width, residual, layer norm."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.dropout(self.mlp(x)))


class Layer(nn.Module):
    """One layer, without cross-attention if `dim` is None; `text` False: no later layer reads the text."""

    def __init__(self, width: int, dim: int | None, heads: int, dropout: float, text: bool):
        super().__init__()
        self.self_attention = Attention(width, width, heads, dropout)
        self.cross_attention: Attention | None = None
        if dim is not None:
            self.cross_attention = Attention(width, dim, heads, dropout)
        self.query_ffn = FeedForward(width, dropout)
        self.text_ffn: FeedForward | None = None
        if text:
            self.text_ffn = FeedForward(width, dropout)

    def mix_states(self, states: Tensor, num_queries: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Self-attention of (B, Q + T, width), split: queries (B, Q, width) and text (B, T or 0, width)."""
        # where no later layer reads the text, it is read here for the last time and not updated
        updated = states
        if self.text_ffn is None:
            updated = states[:, :num_queries]
        mixed = self.self_attention(updated, states, mask)
        return mixed[:, :num_queries], mixed[:, num_queries:]

    def forward(self, states: Tensor, patches: Tensor, num_queries: int, mask: Tensor | None) -> Tensor:
        queries, text = self.mix_states(states, num_queries, mask)
        if self.cross_attention is not None:
            queries = self.cross_attention(queries, patches)
        queries = self.query_ffn(queries)
        if self.text_ffn is None:
            return queries
        return torch.cat([queries, self.text_ffn(text)], 1)


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
        check_at_least(1, num_queries=num_queries, num_layers=num_layers)
        check_at_least(1, cross_every=cross_every, max_text=max_text)
        check_heads_divide(heads, width)
        check_probability(dropout=dropout)
        self.out_dim = width
        self.num_queries = num_queries
        self.cross_every = cross_every
        self.needs_text = text
        self.max_text = max_text
        self.queries = nn.Parameter(torch.empty(num_queries, width))
        self.norm = nn.LayerNorm(width, eps=EPS)
        self.dropout = nn.Dropout(dropout)
        if text:
            text_dim = require_llm_dim(llm_dim, "qformer with text=true")
            self.text_projection = nn.Linear(text_dim, width)
            self.text_position = nn.Embedding(max_text, width)
        self.layers = nn.ModuleList()
        for index in range(num_layers):
            patch_dim = dim if index % cross_every == 0 else None
            is_last = index == num_layers - 1
            self.layers.append(Layer(width, patch_dim, heads, dropout, text and not is_last))
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
        position = (mask.long().cumsum(1) - 1).clamp(min=0)  # padding on the left would be at -1
        projected = self.text_projection(text.to(self.queries.dtype))
        return projected + self.text_position(position)

    def _prepare_states(
        self, batch: int, text: MaybeTensor, text_mask: MaybeTensor
    ) -> tuple[Tensor, MaybeTensor]:
        """What enters the first layer, (B, Q + T, width), and which of it may be read, (B, 1, 1, Q + T)."""
        states = self.queries.expand(batch, -1, -1)
        if not self.needs_text:
            return self.dropout(self.norm(states)), None
        if text is None:
            raise UsageError("qformer with text=true needs the question's embeddings")
        if text_mask is None:
            text_mask = torch.ones_like(text[..., 0])
        states = torch.cat([states, self._embed_text(text, text_mask)], 1)
        # queries come first and are always readable
        readable = F.pad(text_mask.bool(), (self.num_queries, 0), value=True)
        return self.dropout(self.norm(states)), rearrange(readable, "b n -> b 1 1 n")

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        patches = rearrange(features, "b h w c -> b (h w) c")
        states, mask = self._prepare_states(len(patches), text, text_mask)
        for layer in self.layers:
            states = layer(states, patches, self.num_queries, mask)
        return states

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        """The last cross-attention, the mean over its heads and queries."""
        patches = rearrange(features, "b h w c -> b (h w) c")
        states, mask = self._prepare_states(len(patches), text, text_mask)
        last = (len(self.layers) - 1) // self.cross_every * self.cross_every
        for layer in self.layers[:last]:
            states = layer(states, patches, self.num_queries, mask)
        reader = self.layers[last]
        # every `cross_every`-th has it
        assert isinstance(reader, Layer) and reader.cross_attention is not None
        queries, _ = reader.mix_states(states, self.num_queries, mask)
        weights = reader.cross_attention.weights(queries, patches).mean((1, 2))
        return rearrange(weights, "b (h w) -> b h w", h=features.shape[1])
