"""One forward pass under a pruner: what is left so far, and what belongs to it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from llm_adapters.adapter import QueryContext
from llm_adapters.pruning.attention import (
    DispatchedAttention,
    compute_attention_rows,
    compute_pooled_row,
    join_heads,
)
from llm_adapters.pruning.base import Choice, Prompt, Pruner, View
from llm_adapters.pruning.cuts import Cut, PrefillState, make_cut
from llm_adapters.pruning.deepstack import DeepStack
from llm_adapters.pruning.schedule import expand_to_layers

Made = TypeVar("Made")
# what a family's attention asks for that changes its weights
SCORING_ARGUMENTS = ("scaling", "softcap", "s_aux", "sliding_window")
# what of a layer's arguments is narrowed in ways of its own
NARROWED_NAMES = ("attention_mask", "position_ids")


@dataclass
class RemainingTokens:
    """What of a prompt is left as its prefill goes on, T tokens of each row.

    visual  (B, T)  visual tokens
    counts          how many of them each row has
    raters  (B, S)  positions of the raters, -1 fills
    """

    visual: Tensor
    counts: list[int]
    raters: Tensor

    def move_to(self, device: torch.device) -> None:
        """Go on where the next layer's hidden states are."""
        self.visual = self.visual.to(device)
        self.raters = self.raters.to(device)

    def follow_cut(self, cut: Cut, before: Cut | None, choice: Choice) -> None:
        """What is left behind a cut; `before`: the one before it."""
        # where raters are now: positions in the prompt, but an earlier cut has moved them already
        places = cut.locate_tokens()
        if before is not None:
            places = places.gather(1, before.index)
        moved = places.gather(1, self.raters.clamp(min=0))
        self.raters = torch.where(self.raters >= 0, moved, -1)
        self.visual = choice.keep.gather(1, cut.step)
        self.counts = list(choice.counts)


@dataclass
class PrunedPass:
    """One forward pass of `new` tokens after which there are `total`. At prefill there is a `prompt`, and
    what of it is `remaining`; a step behind it has neither."""

    pruner: Pruner
    state: PrefillState
    total: int
    new: int
    flash: bool
    prompt: Prompt | None = None
    remaining: RemainingTokens | None = None
    deepstack: DeepStack | None = None
    counts_behind: dict[int, list[int]] = field(default_factory=dict)  # by layer, as the pruner chose
    # by layer, from its attention to its pruner
    scores: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    narrowed: dict[tuple[int, int], tuple[object, Any]] = field(default_factory=dict)

    def start_prefill(self, prompt: Prompt) -> "PrunedPass":
        """The same pass, which begins with this prompt."""
        self.prompt = prompt
        raters = self.pruner.select_raters(prompt)
        self.remaining = RemainingTokens(prompt.visual, list(prompt.counts), raters)
        return self

    def add_deepstack(self, layer: int, hidden: Tensor) -> Tensor:
        """Hidden states (B, K, D) in front of a layer, before any token is dropped there, with DeepStack's
        features."""
        if self.deepstack is None:
            return hidden
        return self.deepstack.add_features(layer, hidden, self.state.last_cut(layer - 1))

    def is_undecided(self, layer: int) -> bool:
        """Whether the pruner is still to be asked behind so many layers."""
        is_prefill = self.prompt is not None
        return is_prefill and layer in self.pruner.layers and layer not in self.state.cuts

    def score_raters(
        self,
        module: DispatchedAttention,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> None:
        """Called by the attention of a scoring layer, with what it would compute with."""
        layer = module.pruning_layer + 1
        if not self.is_undecided(layer):
            return
        if "keys" in self.pruner.needs:
            self.keys[layer] = key
        if "attention" in self.pruner.needs and self.pruner.rotary:
            self.compute_scores(layer, query, key, mask, arguments)

    def compute_scores(
        self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, arguments: dict[str, Any]
    ) -> None:
        """Note the raters' attention behind `layer` layers, by what an attention function is called with."""
        assert self.remaining is not None  # it is a prefill
        raters = self.remaining.raters.to(query.device)
        if self.pruner.pools:
            self.scores[layer] = compute_pooled_row(query, key, raters, arguments.get("scaling"))
            return
        options = {name: arguments[name] for name in SCORING_ARGUMENTS if arguments.get(name) is not None}
        self.scores[layer] = compute_attention_rows(query, key, mask, raters, self.pruner.heads, **options)

    def make_view(self, layer: int, hidden: Tensor, name: str, norm: nn.Module | None) -> View:
        """What the pruner sees behind `layer` layers. UsageError for a layer of class `name` whose attention
        was not reached; `norm`: the LLM's last, where it is needed."""
        assert self.prompt is not None and self.remaining is not None  # it is a prefill
        needs = self.pruner.needs
        lacks_attention = "attention" in needs and layer not in self.scores
        lacks_keys = "keys" in needs and layer not in self.keys
        if lacks_attention or lacks_keys:
            raise UsageError(
                f"pruning: the attention of {name} does not hand its keyword arguments to the "
                "attention function, so it cannot be scored; choose another language model"
            )
        remaining = self.remaining
        attention = self.scores.pop(layer, hidden.new_empty(len(hidden), 0, hidden.shape[1]))
        view = View(
            number=self.pruner.layers.index(layer),
            visual=remaining.visual,
            counts=remaining.counts,
            first=self.prompt.counts,
            raters=remaining.raters,
            attention=attention.to(hidden.device),
            hidden=hidden,
        )
        if "keys" in needs:
            view.keys = join_heads(self.keys.pop(layer)).to(hidden.device)
        if "normed" in needs:
            assert norm is not None  # the adapter has looked it up
            view.normed = norm(hidden).to(hidden.device)
        return view

    @torch.no_grad()
    def ask_pruner(self, layer: int, hidden: Tensor, name: str, norm: nn.Module | None) -> None:
        """Ask the pruner behind `layer` layers, once: a checkpointed layer may run again. Arguments and
        errors as `make_view`."""
        if not self.is_undecided(layer):
            return
        assert self.prompt is not None and self.remaining is not None  # it is a prefill
        remaining = self.remaining
        remaining.move_to(hidden.device)
        view = self.make_view(layer, hidden, name, norm)
        choice = self.pruner.choose_tokens(view)
        self.counts_behind[layer] = list(choice.counts)
        if list(choice.counts) == remaining.counts and choice.into is None:
            self.state.cuts[layer] = None
            return
        length = self.state.length
        before = self.state.last_cut(layer)
        if before is not None:
            before = before.move_to(hidden.device)
        other_counts = [length - count for count in self.prompt.counts]  # text and padding
        renumbered = None
        if self.pruner.positions == "renumber":
            renumbered = self.prompt.real.to(hidden.device)
        cut = make_cut(layer, before, length, remaining.visual, choice, other_counts, renumbered)
        if cut.bias is not None:
            cut.bias = cut.bias.to(hidden.dtype)
        self.state.cuts[layer] = cut
        remaining.follow_cut(cut, before, choice)

    def build_once(self, cut: Cut, value: object, make: Callable[[], Made]) -> Made:
        """`make()`, once for each cut and object: most layers share masks and positions."""
        key = (cut.layer, id(value))
        if key not in self.narrowed:
            self.narrowed[key] = (value, make())  # the object, too: its id must not be used again
        _, made_before = self.narrowed[key]
        return made_before

    def narrow_mask(self, cut: Cut, mask: object) -> Tensor | None:
        """An attention mask for the tokens that are left. UsageError for one that is no tensor."""
        if mask is not None and not isinstance(mask, Tensor):
            raise UsageError(
                f"pruning: no way to narrow attention masks of type {type(mask).__name__}; load "
                "the language model with attn_implementation='sdpa'"
            )

        def make_mask() -> Tensor | None:
            own_cut = cut if mask is None else cut.move_to(mask.device)
            return own_cut.narrow_mask(mask, self.total, self.new, boolean=not self.flash)

        return self.build_once(cut, mask, make_mask)

    def narrow_token_values(self, cut: Cut, arguments: dict[str, Any]) -> None:
        """What belongs to tokens in a layer's arguments, (B, T) each, for the tokens that are left: the types
        of tokens by which experts are chosen, for one."""
        shape = (len(cut.index), cut.length)
        for name, value in arguments.items():
            if name not in NARROWED_NAMES and isinstance(value, Tensor) and value.shape == shape:
                arguments[name] = value.gather(1, cut.move_to(value.device).index)

    def narrow_rotary(self, cut: Cut, embeddings: Any) -> Any:
        """(cos, sin) (..., B or 1, T, d) for the tokens that are left; some LLMs hand down one tensor."""

        def narrow_table(table: Tensor) -> Tensor:
            sides = table.shape[:-3]  # Qwen-VL's three directions
            rotary = cut.move_to(table.device).rotary
            table = table.expand(*sides, len(rotary), -1, -1)
            index = rotary.unsqueeze(-1)
            index = index.expand(*sides, -1, -1, table.shape[-1])
            return table.gather(-2, index)

        def narrow_all() -> Any:
            if isinstance(embeddings, Tensor):
                return narrow_table(embeddings)
            return tuple(map(narrow_table, embeddings))

        return self.build_once(cut, embeddings, narrow_all)

    def narrow_queries(self, cut: Cut, context: QueryContext) -> QueryContext:
        """A query module's context among the tokens that are left."""

        def narrow_context() -> QueryContext:
            own_cut = cut.move_to(context.query_index.device)
            index = own_cut.locate_tokens().gather(1, context.query_index.clamp(min=0))
            index = torch.where(context.query_index >= 0, index, -1)
            columns = own_cut.index.unsqueeze(1)
            columns = columns.expand(-1, context.question_mask.shape[1], -1)
            mask = context.question_mask.gather(2, columns)  # (B, S, K)
            visual_mask = context.visual_mask
            if visual_mask is not None:
                visual_mask = visual_mask.gather(2, columns)
            return replace(context, query_index=index, question_mask=mask, visual_mask=visual_mask)

        return self.build_once(cut, context, narrow_context)

    def record_passed_tokens(self) -> None:
        """Tell the pruner how many visual tokens a prefill took through the layers. UsageError if some of its
        layers were never asked."""
        if self.prompt is None:
            return
        was_asked = set(self.pruner.layers) <= set(self.counts_behind)
        if any(self.prompt.counts) and not was_asked:
            raise UsageError(
                "pruning: the language model does not hand keyword arguments down to its "
                "decoder layers, so no visual token was dropped; choose another one"
            )
        layers = sorted(self.counts_behind)
        totals = [sum(self.counts_behind[layer]) for layer in layers]  # of all rows
        first_total = sum(self.prompt.counts)
        by_layer = expand_to_layers(self.pruner.llm_layers, layers, totals, first_total)
        self.pruner.passed += sum(by_layer)
        self.pruner.rows += sum(count > 0 for count in self.prompt.counts)
