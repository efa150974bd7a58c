"""Which tokens are left behind a decoder layer, and what belongs to them in masks and positions.

Tokens stay in their order, so that causality holds. Rows that keep fewer tokens than others are filled with
tokens that they have dropped, in their places; nobody but themselves sees these.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from compressors.tome import average_groups
from llm_adapters.pruning.base import Choice


@dataclass
class Cut:
    """B rows, T tokens of the whole prompt, K of them behind `layer` (fill included), P before it.

    index   (B, K)  positions in the prompt, ascending
    step    (B, K)  positions among the P
    fill    (B, K)  True where a row has fewer tokens; None: nowhere
    rotary  (B, K)  tokens of the prompt whose position ids these have
    into    (B, P)  as in `Choice`
    """

    layer: int
    length: int
    index: Tensor
    step: Tensor
    fill: Tensor | None
    rotary: Tensor
    into: Tensor | None = None

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
        new, keys) one takes its place, or a (B, keys) one, as flash attention wants it."""
        batch, prefill = len(self.index), new == total == self.length
        tail = torch.arange(self.length, total, device=self.index.device).expand(batch, -1)
        columns = torch.cat([self.index, tail], 1)  # (B, K + what came since)
        hidden = None if self.fill is None else torch.cat([self.fill, torch.zeros_like(tail).bool()], 1)
        if mask is None:
            if hidden is None:
                return None
            if not boolean:
                return ~hidden
            since = torch.arange(total - new, total, device=columns.device).expand(batch, -1)
            queries = self.index if prefill else since
            mask = (columns.unsqueeze(1) <= queries.unsqueeze(2)).unsqueeze(1)
        elif mask.ndim == 2:
            mask = mask.gather(1, columns)
            return mask if hidden is None else mask.masked_fill(hidden, 0)
        else:
            mask = mask.expand(batch, -1, -1, -1)
            if prefill:
                mask = mask.gather(2, columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
            mask = mask.gather(3, columns[:, None, None, :].expand(-1, mask.shape[1], mask.shape[2], -1))
        if hidden is None:
            return mask
        unseen = hidden[:, None, None, :]
        if prefill:  # a fill sees itself: a row of nothing but -inf would be nan
            unseen = unseen & ~torch.eye(mask.shape[2], dtype=torch.bool, device=mask.device)
        lowest = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        return mask.masked_fill(unseen, lowest)


@dataclass
class PrefillState:
    """What decoding has to know of a prefill of `length` tokens; it travels with the KV cache. `cuts`: by
    layer, None where nothing went."""

    length: int
    cuts: dict[int, Cut | None] = field(default_factory=dict)

    def last_cut(self, layer: int) -> Cut | None:
        """The last one made behind `layer` layers or fewer."""
        cut_layers = [k for k, cut in self.cuts.items() if k <= layer and cut is not None]
        return self.cuts[max(cut_layers)] if cut_layers else None

    def truncate_prefill(self, length: int) -> bool:
        """Forget what came behind `length` tokens: guesses that were taken back from the cache. False if
        dropped tokens are among them."""
        gone = self.length - length
        for layer, cut in self.cuts.items():
            if cut is not None:
                left = cut.index.shape[1] - gone
                if left < 1 or not (cut.index[:, left:] >= length).all():
                    return False
                fill = None if cut.fill is None else cut.fill[:, :left]
                self.cuts[layer] = replace(cut, length=length, index=cut.index[:, :left], fill=fill)
        self.length = length
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
    order = order if fill is None else order.masked_fill(fill, -1)
    return torch.full((len(index), length), -1, device=index.device).scatter(1, index, order)


def make_cut(
    layer: int,
    before: Cut | None,
    length: int,
    visual: Tensor,
    choice: Choice,
    rest: list[int],
    renumber: bool,
) -> Cut:
    """`visual` (B, P) tokens are left before, `choice` of them behind `layer`; `rest[b]`: tokens of a row of
    the prompt that are not visual."""
    stay = ~(visual & ~choice.keep)
    if before is not None and before.fill is not None:
        stay = stay & ~before.fill
    sizes = [r + c for r, c in zip(rest, choice.counts)]
    first = (~stay).int().argsort(dim=1, stable=True)[:, : max(sizes)]  # those that stay, then fill
    step = first.sort(1).values
    fill = None if min(sizes) == max(sizes) else ~stay.gather(1, step)
    index = step if before is None else before.index.gather(1, step)
    rotary = index
    if renumber:
        # the last token keeps its position and those before it close up: only differences count in rotary
        # embeddings, and tokens that are generated later need no other position for each layer
        gone = (invert_index(index, fill, length) < 0).int()
        behind = gone.flip(1).cumsum(1).flip(1) - gone
        rotary = index + behind.gather(1, index)
    return Cut(layer, length, index, step, fill, rotary, choice.into)
