"""QueCC, arXiv 2411.03312 (repository locuslab/llava-token-compression): it knows what is asked.

The question is added to every patch before queries are made, one for each window by a strided convolution. A
query reads its own window's patches, whose keys and values may come from several levels of the tower.

    query    patches + LayerNorm(Linear(question)) - MLP - LayerNorm - depthwise convolution by windows
    keys     levels - MLP - LayerNorm        (values likewise)
    token    attention(query, the window's keys and values)

    H*W -> (H/s) * (W/s)        576 -> 36 at s = 4

The released code takes the question from a pass of its own through the whole LLM, the last word's last hidden
state; here it is the mean of the question's embeddings, which costs nothing.
"""

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.base import MaybeTensor, register
from compressors.checks import check_channels, check_heads_divide
from compressors.errors import UsageError
from compressors.grid import (
    GridPolicy,
    WindowCompressor,
    fit_to_windows,
    make_window_mask,
    split_windows,
)
from compressors.layers import Attention

EPS = 1e-6


def make_mlp(in_dim: int, out_dim: int) -> nn.Sequential:
    """Linear - GELU - Linear - LayerNorm."""
    return nn.Sequential(
        nn.Linear(in_dim, out_dim), nn.GELU(), nn.Linear(out_dim, out_dim), nn.LayerNorm(out_dim, eps=EPS)
    )


def average_text(text: Tensor, mask: MaybeTensor) -> Tensor:
    """(B, T, D) -> (B, D), the mean of what the mask (B, T) shows; zeros where it shows nothing."""
    if mask is None:
        mask = torch.ones_like(text[..., 0])
    is_shown = mask.to(text.dtype).unsqueeze(-1)  # (B, T, 1), 1 or 0
    # what is hidden may be anything
    total = torch.where(is_shown > 0, text, 0).sum(1)
    return total / is_shown.sum(1).clamp(min=1)


@register("quecc")
class QueCC(WindowCompressor):
    """Windows of `rate` x `rate` patches, each read by a query that knows the question.

    levels    hidden states of the tower for keys and values, four of CLIP-L's as released; none: the tower's
              output
    """

    needs_text = True

    def __init__(
        self,
        dim: int,
        llm_dim: int,
        *,
        rate: int = 3,
        heads: int = 8,
        levels: tuple[int, ...] = (),
        grid_policy: GridPolicy = "error",
    ):
        super().__init__(rate, grid_policy)
        check_heads_divide(heads, dim, ("heads", "dim"))
        self.out_dim = dim
        self.needs_levels = tuple(levels)
        fine_dim = max(1, len(levels)) * dim  # without levels keys and values read the tower's output
        self.text = nn.Sequential(nn.Linear(llm_dim, dim), nn.LayerNorm(dim, eps=EPS))
        self.query = make_mlp(dim, dim)
        self.key = make_mlp(fine_dim, dim)
        self.value = make_mlp(fine_dim, dim)
        self.downsample = nn.Conv2d(dim, dim, rate, rate, groups=dim)
        self.attend = Attention(dim, dim, heads, dim // heads)

    def _prepare_operands(
        self, features: Tensor, text: MaybeTensor, text_mask: MaybeTensor
    ) -> tuple[Tensor, Tensor, Tensor, MaybeTensor]:
        """Queries (B*h*w, 1, C), keys and values (B*h*w, s*s, C), and a mask of those that are patches."""
        if text is None:
            raise UsageError("quecc needs the question's embeddings")
        check_channels(features, self.out_dim, self.needs_levels)
        fitted, real = fit_to_windows(features, self.rate, self.grid_policy)
        question = self.text(average_text(text.to(features.dtype), text_mask))
        patch_queries = self.query(fitted[..., : self.out_dim] + question[:, None, None])
        if real is not None:  # the question does not make patches of the filled border
            patch_queries = patch_queries.masked_fill(~real.unsqueeze(-1), 0)
        query = self.downsample(rearrange(patch_queries, "b h w c -> b c h w"))
        fine = fitted
        if self.needs_levels:
            fine = fitted[..., self.out_dim :]
        keys = split_windows(self.key(fine), self.rate)
        values = split_windows(self.value(fine), self.rate)
        mask = make_window_mask(real, len(features), self.rate)
        return rearrange(query, "b c h w -> (b h w) 1 c"), keys, values, mask

    def forward(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        query, keys, values, mask = self._prepare_operands(features, text, text_mask)
        read = self.attend(query, keys, values, mask)
        count = self.num_tokens(*features.shape[1:3])
        return rearrange(read, "(b n) 1 c -> b n c", n=count)

    def attention(self, features: Tensor, text: MaybeTensor = None, text_mask: MaybeTensor = None) -> Tensor:
        query, keys, _, mask = self._prepare_operands(features, text, text_mask)
        return self.weigh_windows(self.attend.weights(query, keys, mask), features)
