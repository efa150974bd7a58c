"""One forward pass under a pruner: what is left so far, and what belongs to it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compressors.errors import UsageError
from llm_adapters.adapter import QueryContext
from llm_adapters.pruning.attention import DispatchedAttention, compute_attention_rows
from llm_adapters.pruning.base import Prompt, Pruner, View
from llm_adapters.pruning.cuts import Cut, PrefillState, make_cut
from llm_adapters.pruning.schedule import expand_to_layers

# what a family's attention asks for that changes its weights
SCORING_ARGUMENTS = ("scaling", "softcap", "s_aux", "sliding_window")


@dataclass
class PrunedPass:
    """One forward pass of `new` tokens after which there are `total`; `prompt` only at prefill. What is left,
    as the prefill goes on: `visual` (B, T) and `counts`, `raters` (B, S)."""

    pruner: Pruner
    state: PrefillState
    total: int
    new: int
    flash: bool
    prompt: Prompt | None = None
    visual: Tensor | None = None
    counts: list[int] = field(default_factory=list)
    raters: Tensor | None = None
    left: dict[int, list[int]] = field(default_factory=dict)  # counts behind each layer
    scores: dict[int, Tensor] = field(default_factory=dict)
    narrowed: dict[tuple[int, int], tuple[object, Any]] = field(default_factory=dict)

    def start_prefill(self, prompt: Prompt) -> "PrunedPass":
        """The same pass, which begins with this prompt."""
        self.prompt = prompt
        self.visual = prompt.visual
        self.counts = list(prompt.counts)
        self.raters = self.pruner.select_raters(prompt)
        return self

    def is_undecided(self, layer: int) -> bool:
        """Whether the pruner is still to be asked behind so many layers."""
        return self.prompt is not None and layer in self.pruner.layers and layer not in self.state.cuts

    def score_raters(
        self,
        module: DispatchedAttention,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        arguments: dict[str, Any],
    ) -> None:
        """Called by the attention of a scoring layer."""
        layer = module.pruning_layer + 1
        if not self.is_undecided(layer):
            return
        assert self.raters is not None  # it is a prefill
        options = {name: arguments[name] for name in SCORING_ARGUMENTS if arguments.get(name) is not None}
        self.scores[layer] = compute_attention_rows(
            query, key, mask, self.raters, self.pruner.heads, **options
        )

    @torch.no_grad()
    def ask_pruner(self, layer: int, hidden: Tensor, name: str) -> None:
        """Ask the pruner behind `layer` layers, once: a checkpointed layer may run again."""
        if not self.is_undecided(layer):
            return
        if layer not in self.scores:
            raise UsageError(
                f"pruning: the attention of {name} does not hand its keyword arguments to the "
                "attention function, so it cannot be scored; choose another language model"
            )
        prompt = self.prompt
        assert prompt is not None and self.visual is not None and self.raters is not None  # it is a prefill
        before = self.state.last_cut(layer)
        view = View(
            number=self.pruner.layers.index(layer),
            visual=self.visual,
            counts=self.counts,
            first=prompt.counts,
            raters=self.raters,
            attention=self.scores.pop(layer),
            hidden=hidden,
        )
        choice = self.pruner.choose_tokens(view)
        self.left[layer] = list(choice.counts)
        if list(choice.counts) == self.counts and choice.into is None:
            self.state.cuts[layer] = None
            return
        other_counts = [self.state.length - count for count in prompt.counts]  # text and padding
        renumber = self.pruner.positions == "renumber"
        cut = make_cut(layer, before, self.state.length, self.visual, choice, other_counts, renumber)
        self.state.cuts[layer] = cut
        # raters are positions among the tokens that are left: an earlier cut has moved them
        places = cut.locate_tokens()
        if before is not None:
            places = places.gather(1, before.index)
        moved = places.gather(1, self.raters.clamp(min=0))
        self.raters = torch.where(self.raters >= 0, moved, -1)
        self.visual = choice.keep.gather(1, cut.step)
        self.counts = list(choice.counts)

    def build_once(self, cut: Cut, value: object, make: Callable[[], Any]) -> Any:
        """`make()`, once for each cut and object: most layers share masks and positions."""
        key = (cut.layer, id(value))
        if key not in self.narrowed:
            self.narrowed[key] = (value, make())  # the object, too: its id must not be used again
        return self.narrowed[key][1]

    def narrow_mask(self, cut: Cut, mask: object) -> Tensor | None:
        """An attention mask for the tokens that are left. UsageError for one that is no tensor."""
        if mask is not None and not isinstance(mask, Tensor):
            raise UsageError(
                f"pruning: no way to narrow attention masks of type {type(mask).__name__}; load "
                "the language model with attn_implementation='sdpa'"
            )
        return self.build_once(cut, mask, lambda: cut.narrow_mask(mask, self.total, self.new, not self.flash))

    def narrow_rotary(self, cut: Cut, embeddings: Any) -> Any:
        """(cos, sin) (..., B or 1, T, d) for the tokens that are left."""

        def narrow_one(table: Tensor) -> Tensor:
            sides = table.shape[:-3]  # Qwen-VL's three directions
            table = table.expand(*sides, len(cut.rotary), -1, -1)
            index = cut.rotary.unsqueeze(-1).expand(*sides, -1, -1, table.shape[-1])
            return table.gather(-2, index)

        def narrow_all() -> Any:
            if isinstance(embeddings, Tensor):  # some LLMs hand down one tensor
                return narrow_one(embeddings)
            return tuple(map(narrow_one, embeddings))

        return self.build_once(cut, embeddings, narrow_all)

    def narrow_queries(self, cut: Cut, context: QueryContext) -> QueryContext:
        """A query module's context among the tokens that are left."""

        def narrow_context() -> QueryContext:
            index = cut.locate_tokens().gather(1, context.query_index.clamp(min=0))
            index = torch.where(context.query_index >= 0, index, -1)
            columns = cut.index.unsqueeze(1).expand(-1, context.question_mask.shape[1], -1)
            mask = context.question_mask.gather(2, columns)  # (B, S, K)
            return QueryContext(index, mask, context.features, context.feature_mask, context.receipt)

        return self.build_once(cut, context, narrow_context)

    def record_passed_tokens(self) -> None:
        """Tell the pruner how many visual tokens a prefill took through the layers. UsageError if some of its
        layers were never asked."""
        if self.prompt is None:
            return
        was_asked = set(self.pruner.layers) <= set(self.left)
        if any(self.prompt.counts) and not was_asked:
            raise UsageError(
                "pruning: the language model does not hand keyword arguments down to its "
                "decoder layers, so no visual token was dropped; choose another one"
            )
        layers = sorted(self.left)
        totals = [
            sum(self.left[layer]) for layer in layers
        ]  # of all rows, behind each of the pruner's layers
        first_total = sum(self.prompt.counts)
        by_layer = expand_to_layers(self.pruner.llm_layers, layers, totals, first_total)
        self.pruner.passed += sum(by_layer)
        self.pruner.rows += sum(count > 0 for count in self.prompt.counts)
