"""Which tokens are left behind a decoder layer, and what belongs to them in masks and positions.

Tokens stay in their order, so that causality holds. Rows that keep fewer tokens than others are filled with
tokens that they have dropped, in their places; nobody but themselves sees these.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from compressors.tome import average_groups
from llm_adapters.pruning.attention import take_rows
from llm_adapters.pruning.base import Choice


@dataclass
class Cut:
    """B rows, T tokens of the whole prompt, K of them behind `layer` (fill included), P before it.

    index   (B, K)  positions in the prompt, ascending
    step    (B, K)  positions among the P
    fill    (B, K)  True where a row has fewer tokens; None: nowhere
    rotary  (B, K)  tokens of the prompt whose position ids these have
    into    (B, P)  as in `Choice`
    bias    (B, K)  added to the attention logits that each receives, the logarithm of its size; None: nothing
    """

    layer: int
    length: int
    index: Tensor
    step: Tensor
    fill: Tensor | None
    rotary: Tensor
    into: Tensor | None = None
    bias: Tensor | None = None
    copies: dict[torch.device, "Cut"] = field(default_factory=dict, init=False)  # on other devices

    def move_to(self, device: torch.device) -> "Cut":
        """The same on a device, where the LLM is spread over several; made once for each."""
        if device == self.index.device:
            return self
        if device not in self.copies:
            moved: dict[str, Any] = {}
            for name in ("index", "step", "fill", "rotary", "into", "bias"):
                values = getattr(self, name)
                moved[name] = None if values is None else values.to(device)
            self.copies[device] = replace(self, **moved)
        return self.copies[device]

    def narrow_hidden(self, hidden: Tensor) -> Tensor:
        """(B, P, D) -> (B, K, D), merged where tokens are."""
        if self.into is not None:
            hidden = average_groups(hidden, self.into, hidden.shape[1])
        return hidden.gather(1, expand_index(self.step, hidden))

    def widen_hidden(self, hidden: Tensor) -> Tensor:
        """(B, K, D) -> (B, T, D), zeros at tokens that were dropped."""
        if self.fill is not None:
            hidden = hidden.masked_fill(self.fill.unsqueeze(-1), 0)
        wide = hidden.new_zeros(len(hidden), self.length, hidden.shape[-1])
        return wide.scatter(1, expand_index(self.index, hidden), hidden)

    def locate_tokens(self) -> Tensor:
        """(B, T): where each token of the prompt is now, -1 if it was dropped."""
        return invert_index(self.index, self.fill, self.length)

    def narrow_mask(self, mask: Tensor | None, total: int, new: int, boolean: bool) -> Tensor | None:
        """The attention mask of `new` queries (at prefill: those that are left) to what is left of `total`
        keys, from the one of all. None stays None as long as no row is filled; `boolean`: whether a (B, 1,
        new, keys) one takes its place, or a (B, keys) one, as flash attention wants it. With sizes there is
        always one, of numbers to be added."""
        is_prefill = new == total == self.length
        generated = torch.arange(self.length, total, device=self.index.device)
        generated = generated.expand(len(self.index), -1)
        columns = torch.cat([self.index, generated], 1)  # (B, K + what came since)
        is_fill = None
        if self.fill is not None:
            is_generated_fill = torch.zeros_like(generated).bool()  # none is
            is_fill = torch.cat([self.fill, is_generated_fill], 1)
        if mask is None:
            if is_fill is None and self.bias is None:
                return None
            if not boolean:
                assert is_fill is not None  # with sizes flash attention has been refused
                return ~is_fill
            mask = self.make_causal_mask(columns, total, new, is_prefill)
        elif mask.ndim == 2:
            mask = mask.gather(1, columns)
            if is_fill is not None:
                mask = mask.masked_fill(is_fill, 0)
            return mask
        else:
            mask = self.take_from_mask(mask, columns, is_prefill)
        if self.bias is not None:
            mask = self.weigh_mask(mask, columns.shape[1])
        if is_fill is None:
            return mask
        is_hidden = is_fill[:, None, None, :]
        if is_prefill:  # a fill sees itself: a row of nothing but -inf would be nan
            itself = torch.eye(mask.shape[2], dtype=torch.bool, device=mask.device)
            is_hidden = is_hidden & ~itself
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.masked_fill(is_hidden, lowest)

    def weigh_mask(self, mask: Tensor, keys: int) -> Tensor:
        """(B, 1, queries, `keys`) -> the same with the keys' sizes, as numbers to be added."""
        assert self.bias is not None  # asked for by the caller
        generated = keys - self.bias.shape[1]  # tokens that stand for themselves
        bias = torch.nn.functional.pad(self.bias, (0, generated))[:, None, None]
        if mask.dtype == torch.bool:
            return torch.where(mask, bias, torch.finfo(bias.dtype).min)
        return mask + bias

    def make_causal_mask(self, columns: Tensor, total: int, new: int, is_prefill: bool) -> Tensor:
        """(B, 1, queries, keys): which of the keys at `columns` (B, keys) come no later than a query."""
        queries = self.index
        if not is_prefill:
            queries = torch.arange(total - new, total, device=columns.device)
            queries = queries.expand(len(columns), -1)
        return (columns.unsqueeze(1) <= queries.unsqueeze(2)).unsqueeze(1)

    def take_from_mask(self, mask: Tensor, columns: Tensor, is_prefill: bool) -> Tensor:
        """(B or 1, 1, T, T) at prefill, else (B or 1, 1, new, T) -> the same of the keys at `columns`, and of
        the queries there at prefill."""
        mask = mask.expand(len(columns), -1, -1, -1)
        if is_prefill:  # its queries are tokens of the prompt; later ones are all new
            mask = take_rows(mask, columns)
        heads, queries = mask.shape[1:3]
        keys = columns[:, None, None, :].expand(-1, heads, queries, -1)
        return mask.gather(3, keys)


@dataclass
class PrefillState:
    """What decoding has to know of a prefill of `length` tokens; it travels with the KV cache. `owner`: the
    adapter that has the pruner; `cuts`: by layer, None where nothing went."""

    length: int
    owner: int
    cuts: dict[int, Cut | None] = field(default_factory=dict)

    def last_cut(self, layer: int) -> Cut | None:
        """The last one made behind `layer` layers or fewer."""
        cut_layers = [number for number, cut in self.cuts.items() if number <= layer and cut is not None]
        if not cut_layers:
            return None
        return self.cuts[max(cut_layers)]

    def truncate_prefill(self, length: int) -> bool:
        """Forget what came behind `length` tokens: guesses that were taken back from the cache. False if
        dropped tokens are among them."""
        excess = self.length - length
        for layer, cut in self.cuts.items():
            if cut is None:
                continue
            end = cut.index.shape[1] - excess
            # guesses are never dropped, so they are the last tokens of each row
            if end < 1 or not (cut.index[:, end:] >= length).all():
                return False
            fill = cut.fill
            if fill is not None:
                fill = fill[:, :end]
            index = cut.index[:, :end]
            bias = cut.bias
            if bias is not None:
                bias = bias[:, :end]
            self.cuts[layer] = replace(cut, length=length, index=index, fill=fill, bias=bias)
        self.length = length
        return True

    def count_rows(self) -> int:
        """Rows of the prompt; 0 where nothing was dropped."""
        return max((len(cut.index) for cut in self.cuts.values() if cut is not None), default=0)

    def fit_rows(self, rows: int) -> bool:
        """Be the state of a cache of so many rows, as one row may be repeated. False if it cannot be."""
        if self.count_rows() in (0, rows):
            return True
        if self.count_rows() != 1:
            return False
        for layer, cut in self.cuts.items():
            if cut is None:
                continue
            index = cut.index.expand(rows, -1)
            bias = cut.bias
            if bias is not None:
                bias = bias.expand(rows, -1)
            self.cuts[layer] = replace(cut, index=index, bias=bias)  # one row has no fill
        return True

    def count_cached(self, layer: int) -> int:
        """Tokens of the prompt in the cache of the layer that follows `layer` layers."""
        cut = self.last_cut(layer)
        return self.length if cut is None else cut.index.shape[1]


def expand_index(index: Tensor, hidden: Tensor) -> Tensor:
    """(B, K) for gather and scatter along the tokens of (B, T, D)."""
    return index.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])


def invert_index(index: Tensor, fill: Tensor | None, length: int) -> Tensor:
    """(B, length): where each position is in `index` (B, K), -1 where it is not, or fills only."""
    order = torch.arange(index.shape[1], device=index.device).expand_as(index)
    if fill is not None:
        order = order.masked_fill(fill, -1)
    nowhere = torch.full((len(index), length), -1, device=index.device)
    return nowhere.scatter(1, index, order)


def close_gaps(is_dropped: Tensor, is_there: Tensor) -> Tensor:
    """(B, T): at whose place each token of a prompt stands when those that are dropped have gone; both masks
    (B, T). Placeholders that are masked have no position of their own, and are passed over.

    The last token keeps its position and those before it close up: only differences count in rotary
    embeddings, and tokens that are generated later need no other position for each layer."""
    dropped_from_here = is_dropped.int().flip(1).cumsum(1).flip(1)
    dropped_behind = dropped_from_here - is_dropped.int()
    ranks = (is_there.int().cumsum(1) - 1).clamp(min=0)  # among the tokens that are there
    places = (~is_there).int().argsort(dim=1, stable=True)  # of ranks
    last_rank = is_there.shape[1] - 1
    moved = places.gather(1, (ranks + dropped_behind).clamp(max=last_rank))
    own_places = torch.arange(is_there.shape[1], device=is_there.device).expand_as(is_there)
    return torch.where(dropped_behind > 0, moved, own_places)


def make_cut(
    layer: int,
    before: Cut | None,
    length: int,
    visual: Tensor,
    choice: Choice,
    other_counts: list[int],
    renumbered: Tensor | None,
) -> Cut:
    """`visual` (B, P) tokens are left before, `choice` of them behind `layer`; `other_counts[b]`: tokens of a
    row of the prompt that are not visual; `renumbered` (B, T): the tokens of the prompt that are there, which
    close up, None where all keep their positions."""
    stay = ~(visual & ~choice.keep)
    if before is not None and before.fill is not None:
        stay = stay & ~before.fill
    sizes = [other + visual_left for other, visual_left in zip(other_counts, choice.counts)]
    # those that stay come first, then fill, as many as the longest row needs; then back in their order
    order = (~stay).int().argsort(dim=1, stable=True)
    chosen = order[:, : max(sizes)]
    step = chosen.sort(1).values
    fill = None
    if min(sizes) < max(sizes):
        fill = ~stay.gather(1, step)
    index = step if before is None else before.index.gather(1, step)
    rotary = index
    if renumbered is not None:
        is_dropped = invert_index(index, fill, length) < 0
        rotary = close_gaps(is_dropped, renumbered).gather(1, index)
    bias = None
    if choice.sizes is not None:
        bias = choice.sizes.gather(1, step).log()
    elif before is not None and before.bias is not None:
        bias = before.bias.gather(1, step)
    return Cut(layer, length, index, step, fill, rotary, choice.into, bias)
