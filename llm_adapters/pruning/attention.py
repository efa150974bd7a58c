"""Attention of a few tokens in one decoder layer, beside whatever implementation the LLM uses.

transformers calls the attention that `config._attn_implementation` names, with queries and keys that have
their positions. The attention module of a scoring layer gets a copy of its configuration that names
`slothkit_scoring`, which computes the raters' softmax rows, S of T, and then calls the LLM's own
implementation. No family's code is repeated, and nothing turns eager.
"""

import copy
import sys
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compressors.errors import UsageError
from compressors.selection import without_autocast

SCORING_ATTENTION = "slothkit_scoring"
PRUNING_CONTEXT = "pruning_context"
QUERY_CHUNK = 128  # queries at once


class DispatchedAttention(Protocol):
    """An attention module of transformers that takes its implementation from its configuration."""

    config: PreTrainedConfig
    pruning_layer: int  # which decoder layer it is in, from 0; set where it scores
    pruning_owners: set[int]  # the adapters whose pruners have it score


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, H, T, d) at the positions `index` (B, S) of T -> (B, H, S, d): queries, or the rows of masks."""
    heads = values.shape[1]
    width = values.shape[3]
    rows = index[:, None, :, None].expand(-1, heads, -1, width)
    return values.gather(2, rows)


def join_heads(values: Tensor) -> Tensor:
    """(B, H, T, d) -> (B, T, H*d)."""
    return values.transpose(1, 2).flatten(2)


def find_attention(layer: nn.Module) -> DispatchedAttention:
    """The self-attention of a decoder layer, or a UsageError if it does not choose its implementation by
    configuration."""
    for module in layer.modules():
        config = getattr(module, "config", None)
        is_attention = hasattr(module, "layer_idx") and hasattr(module, "is_causal")
        if module is not layer and is_attention and hasattr(config, "_attn_implementation"):
            return cast(DispatchedAttention, module)  # it has just been looked at
    raise UsageError(
        f"pruning: {type(layer).__name__} has no attention that transformers dispatches by its "
        "configuration; choose another language model"
    )


def enable_scoring(module: DispatchedAttention, owner: int) -> None:
    """Let an attention module compute scores, too, for the pruner of the adapter `owner`."""
    module.pruning_owners = vars(module).get("pruning_owners", set()) | {owner}
    if not hasattr(module.config, "slothkit_original"):
        original = module.config
        module.config = copy.copy(original)  # the other layers share the original
        module.config._attn_implementation = SCORING_ATTENTION
        module.config.slothkit_original = original


def disable_scoring(module: nn.Module, owner: int) -> None:
    """Undo `enable_scoring`, where it was done, unless other adapters have this module score."""
    owners = vars(module).get("pruning_owners", set())
    if owner not in owners:
        return
    scoring = cast(DispatchedAttention, module)  # only these have owners
    scoring.pruning_owners = owners - {owner}
    if not scoring.pruning_owners:
        scoring.config = cast(Any, scoring.config).slothkit_original
        del scoring.pruning_owners, scoring.pruning_layer


def score_and_attend(
    module: DispatchedAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """An attention function of transformers: the scores go to the context, if there is one."""
    context = kwargs.get(PRUNING_CONTEXT)
    if context is not None:
        context.score_raters(module, query, key, attention_mask, kwargs)
    name = module.config.slothkit_original._attn_implementation
    # "eager" is in no registry: each family's file has its own function, as transformers looks it up too
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get(name, eager)
    return attend(module, query, key, value, attention_mask, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(SCORING_ATTENTION, score_and_attend)


@torch.no_grad()
def compute_attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    index: Tensor,
    heads: str,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    sliding_window: int | None = None,
) -> Tensor:
    """Softmax attention (B, S, T) of the queries at `index` (B, S) to all keys, over heads by "mean" or
    "max"; zeros where the index is -1.

    query (B, H, T, d), key (B, G, T, d) with H a multiple of G; mask: None (causal), (B, T) of tokens that
    are there, or (B, 1, T, T) as transformers makes them, bool or added, with its window. `s_aux` (H,):
    logits of a sink."""
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    rows = []
    with without_autocast(query.device.type):
        for chunk in index.split(QUERY_CHUNK, dim=1):  # logits of all queries at once would be (B, H, S, T)
            rows.append(
                _compute_chunk_rows(query, key, mask, chunk, heads, scaling, softcap, s_aux, sliding_window)
            )
    return torch.cat(rows, 1)


@torch.no_grad()
def compute_pooled_row(query: Tensor, key: Tensor, index: Tensor, scaling: float | None = None) -> Tensor:
    """Softmax attention (B, 1, T) of the mean of the queries at `index` (B, S), -1 fills, to the keys there,
    mean over heads; zeros elsewhere. Shapes as `compute_attention_rows`; in float32, without autocast."""
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    at = index.clamp(min=0)
    is_rater = index >= 0
    weights = is_rater / is_rater.sum(1, keepdim=True).clamp(min=1)  # (B, S)
    with without_autocast(query.device.type):
        mean_query = torch.einsum("bs,bhsd->bhd", weights, take_rows(query, at).float())
        mean_query = mean_query.unflatten(1, (key.shape[1], -1))  # (B, G, H / G, d)
        rater_key = take_rows(key, at).float()  # (B, G, S, d)
        logits = torch.einsum("bgrd,bgsd->bgrs", mean_query, rater_key) * scaling
    lowest = torch.finfo(logits.dtype).min  # and not -inf: a row without raters has no softmax
    logits = logits.masked_fill(~is_rater[:, None, None], lowest)
    attention = logits.softmax(-1).flatten(1, 2).mean(1).masked_fill(~is_rater, 0)  # (B, S)
    row = attention.new_zeros(len(index), key.shape[2])
    return row.scatter_add(1, at, attention).unsqueeze(1)


def _compute_chunk_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    index: Tensor,
    heads: str,
    scaling: float,
    softcap: float | None,
    sink: Tensor | None,
    window: int | None,
) -> Tensor:
    """`compute_attention_rows` for a few queries."""
    at = index.clamp(min=0)  # (B, S); what fills compute is taken away in the end
    groups, tokens = key.shape[1:3]
    rater_query = take_rows(query, at)
    rater_query = rater_query.unflatten(1, (groups, -1))  # (B, G, H / G, S, d)
    # float32 before the product, and no autocast around it: in half precision close scores would be equal,
    # and large ones infinite
    shared_key = key.float().unsqueeze(2)  # (B, G, 1, T, d)
    products = rater_query.float() @ shared_key.mT
    logits = products.flatten(1, 2) * scaling  # (B, H, S, T)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is None or mask.ndim == 2:
        positions = torch.arange(tokens, device=at.device)
        distance = at.unsqueeze(2) - positions  # (B, S, T)
        is_read = (distance >= 0) & (distance < (window or tokens))
        if mask is not None:
            is_read = is_read & mask[:, None, :tokens].bool()
        logits = logits.masked_fill(~is_read.unsqueeze(1), -torch.inf)
    else:
        mask = mask[..., :tokens]
        mask = mask.expand(len(at), -1, -1, -1)
        rater_mask = take_rows(mask, at)  # (B, 1, S, T)
        if mask.dtype == torch.bool:
            logits = logits.masked_fill(~rater_mask, -torch.inf)
        else:
            logits = logits + rater_mask
    if sink is not None:  # takes part of the softmax and is cut off again
        sink_logits = sink.float().view(1, -1, 1, 1)
        sink_logits = sink_logits.expand(*logits.shape[:3], 1)
        logits = torch.cat([logits, sink_logits], -1)
    weights = logits.softmax(-1)[..., :tokens]
    weights = weights.amax(1) if heads == "max" else weights.mean(1)
    return torch.where((index >= 0).unsqueeze(2), weights, 0)
