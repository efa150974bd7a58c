"""Modality pre-fusion, LLaVA-Mini, arXiv 2501.03895 (repository ictnlp/LLaVA-Mini).

Before the first layer of the LLM the question reads the *uncompressed* patch features, in a few decoder
layers of the LLM's kind, so that few visual tokens are enough behind them; `resampler_2d+llava_mini` with a
grid of 1 x 1 is the paper's one visual token.

    [patches (P, D); visual tokens; question; query tokens]  --causal layers-->  the last three go on

The paper has no query tokens: here those of a turn close its question, are fused as its words are, and none
reads another. The patches' way to the LLM's width is the module's own, where the paper shares the projector.
Words of answers are as they were, as in the paper.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from compressors.checks import check_at_least
from compressors.errors import UsageError
from compressors.layers import GatedMLP
from connectors.projector import MlpProjector
from connectors.query_module import QueryModule, register

EPS = 1e-5
STD = 0.02
ROTARY_BASE = 10000.0


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """(B, heads, L, d) turned by angles (B, L, d / 2): rotary position embeddings, halves paired."""
    first, second = x.chunk(2, -1)  # float32 angles make products of half precision float32
    cos = angles.cos().unsqueeze(1)
    sin = angles.sin().unsqueeze(1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.to(x.dtype)


class PrefusionLayer(nn.Module):
    """A decoder layer as Llama's: attention with rotary positions, then a gated MLP, each behind a norm."""

    def __init__(self, dim: int, heads: int, width: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.RMSNorm(dim, EPS)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.mlp_norm = nn.RMSNorm(dim, EPS)
        self.mlp = GatedMLP(dim, width, dim)

    def forward(self, states: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) -> (B, L, D); mask (B, L, L), no row of it empty."""
        normed = self.attention_norm(states)
        q = rearrange(self.query(normed), "b n (h d) -> b h n d", h=self.heads)
        k = rearrange(self.key(normed), "b n (h d) -> b h n d", h=self.heads)
        v = rearrange(self.value(normed), "b n (h d) -> b h n d", h=self.heads)
        read = F.scaled_dot_product_attention(rotate(q, angles), rotate(k, angles), v, mask.unsqueeze(1))
        states = states + self.out(rearrange(read, "b h n d -> b n (h d)"))
        return states + self.mlp(self.mlp_norm(states))


class ReadingOrder:
    """Who reads whom before the first layer, P patches, then T tokens of a row, by what query tokens read.

    A token reads what all query tokens read that read it: a word of a question the images up to its turn and
    its own question, a visual token the images up to its own. Nothing reads what comes later.
    """

    def __init__(
        self,
        query_index: Tensor,
        question_mask: Tensor,
        feature_mask: Tensor,
        visual_mask: Tensor,
    ):
        tokens = torch.arange(question_mask.shape[2], device=query_index.device)
        reads = (question_mask.any(-1) & feature_mask.any(-1)).unsqueeze(-1)  # (B, S, 1)
        itself = tokens == query_index.unsqueeze(-1)  # no place is -1
        text = (question_mask | itself) & reads
        visual = visual_mask & reads
        read = text | visual  # (B, S, T)
        self.is_fused = read.any(1)  # (B, T)
        self.is_patch = (feature_mask & reads).any(1)  # (B, P)
        self.patches_of_token = self.is_fused.unsqueeze(2) & keep_common(read, feature_mask)  # (B, T, P)
        is_text = text.any(1)
        is_visual = visual.any(1)
        common = keep_common(read, read) & self.is_fused.unsqueeze(2) & self.is_fused.unsqueeze(1)
        kinds = is_text.unsqueeze(2) | is_visual.unsqueeze(1)  # visual tokens read no words
        self.tokens_of_token = common & kinds & (tokens <= tokens.unsqueeze(1))  # (B, T, T)

    def make_mask(self) -> Tensor:
        """(B, P + T, P + T). Whatever takes no part reads itself alone."""
        rows, patches = self.is_patch.shape
        order = torch.arange(patches, device=self.is_patch.device)
        patches_of_patch = (order <= order.unsqueeze(1)) & self.is_patch.unsqueeze(1)
        tokens_of_patch = torch.zeros_like(self.patches_of_token).mT  # a patch reads no token
        above = torch.cat([patches_of_patch & self.is_patch.unsqueeze(2), tokens_of_patch], 2)
        below = torch.cat([self.patches_of_token, self.tokens_of_token], 2)
        mask = torch.cat([above, below], 1)
        return mask | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)

    def count_positions(self) -> Tensor:
        """(B, P + T): patches count from 0, and a token comes behind the patches that it reads. Neither
        padding nor a later turn moves anything."""
        patches = self.is_patch.cumsum(1) - 1
        tokens = self.patches_of_token.sum(2) + self.is_fused.cumsum(1) - 1
        return torch.cat([patches, tokens], 1).clamp(min=0)


def keep_common(read: Tensor, masks: Tensor) -> Tensor:
    """(B, T, N): what all of the S queries read by masks (B, S, N) that read a token, (B, S, T)."""
    excluded = torch.einsum("bst,bsn->btn", read.float(), (~masks).float())
    return excluded == 0


@register("llava_mini")
class LlavaMini(QueryModule):
    """Pre-fusion of questions and visual tokens with the patches, before the first decoder layer.

    num_layers    decoder layers of its own (4 in the paper)
    num_queries   query tokens a turn, at least one: they tell where a question ends
    init          query tokens start at the dot token's embedding plus noise, or as noise alone
    heads         attention heads; None: the LLM's
    width         of the gated MLPs; None: 8/3 of the LLM's, as Llama's
    """

    at = (1,)
    prefuses = True

    def __init__(
        self,
        llm_dim: int,
        vision_dim: int,
        llm_heads: int,
        *,
        num_layers: int = 4,
        num_queries: int = 1,
        init: Literal["dot", "random"] = "dot",
        heads: int | None = None,
        width: int | None = None,
    ):
        super().__init__()
        if heads is None:
            heads = llm_heads
        if width is None:
            width = round(llm_dim * 8 / 3)
        counts = {
            "llava_mini.num_layers": num_layers,
            "llava_mini.num_queries": num_queries,
            "llava_mini.heads": heads,
            "llava_mini.width": width,
        }
        check_at_least(1, **counts)
        if llm_dim % (2 * heads):
            raise UsageError(
                f"llava_mini.heads={heads}: heads of the LLM's width {llm_dim} must have an even number of "
                "channels each, for rotary positions; set llava_mini.heads to a divisor of half of it"
            )
        self.num_queries = num_queries
        self.init = init
        self.head_dim = llm_dim // heads
        self.project = MlpProjector(vision_dim, llm_dim)
        self.layers = nn.ModuleList(PrefusionLayer(llm_dim, heads, width) for _ in range(num_layers))
        self.tokens = nn.Parameter(torch.empty(num_queries, llm_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Small weights as Llama's, so that the LLM first sees its own embeddings, nearly as they are."""
        nn.init.normal_(self.tokens, std=STD)
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=STD)

    def forward(
        self,
        hidden: Tensor,
        query_index: Tensor,
        question_mask: Tensor,
        features: Tensor,
        feature_mask: Tensor,
        insertion: int = 0,  # noqa: ARG002
        visual_mask: Tensor | None = None,
    ) -> Tensor:
        if visual_mask is None:
            visual_mask = torch.zeros_like(question_mask)
        order = ReadingOrder(query_index, question_mask, feature_mask, visual_mask)
        # what fills rows with fewer images may be anything: nan would pass through masks as 0 * nan
        features = features.masked_fill(~order.is_patch.unsqueeze(2), 0)
        patches = self.project(features.to(hidden.dtype)).to(hidden.dtype)
        angles = self._compute_angles(order.count_positions())
        mask = order.make_mask()
        states = torch.cat([patches, hidden], 1)
        for layer in self.layers:
            states = layer(states, angles, mask)
        fused = states[:, patches.shape[1] :].to(hidden.dtype)
        return torch.where(order.is_fused.unsqueeze(2), fused, hidden)

    def _compute_angles(self, positions: Tensor) -> Tensor:
        """Rotary angles (B, L, head_dim / 2) of positions (B, L)."""
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device)
        frequencies = ROTARY_BASE ** -(steps / self.head_dim)
        return positions.unsqueeze(2).float() * frequencies
