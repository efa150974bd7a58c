"""One forward pass under a pruner: what is left so far, and what belongs to it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from llm_adapters.adapter import QueryContext
from llm_adapters.pruning.attention import compute_attention_rows
from llm_adapters.pruning.base import Prompt, Pruner, View
from llm_adapters.pruning.cuts import Cut, PrefillState, make_cut
from llm_adapters.pruning.schedule import expand_to_layers

# what a family's attention asks for that changes its weights
SCORING_ARGUMENTS = "scaling", "softcap", "s_aux", "sliding_window"


@dataclass
class Run:
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
    narrowed: dict = field(default_factory=dict)

    def start_prefill(self, prompt: Prompt) -> "Run":
        self.prompt, self.visual, self.counts = prompt, prompt.visual, list(prompt.counts)
        self.raters = self.pruner.raters(prompt)
        return self

    def is_undecided(self, layer: int) -> bool:
        """Whether the pruner is still to be asked behind so many layers."""
        return self.prompt is not None and layer in self.pruner.layers and layer not in self.state.cuts

    def score_raters(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, asked: dict
    ) -> None:
        """Called by the attention of a scoring layer."""
        layer = module.pruning_layer + 1
        if self.is_undecided(layer):
            known = {name: asked[name] for name in SCORING_ARGUMENTS if asked.get(name) is not None}
            self.scores[layer] = compute_attention_rows(
                query, key, mask, self.raters, self.pruner.heads, **known
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
        number, prompt, before = self.pruner.layers.index(layer), self.prompt, self.state.last_cut(layer)
        choice = self.pruner.choose_tokens(
            View(number, self.visual, self.counts, prompt.counts, self.raters, self.scores.pop(layer), hidden)
        )
        self.left[layer] = list(choice.counts)
        if list(choice.counts) == self.counts and choice.into is None:
            self.state.cuts[layer] = None
            return
        rest = [self.state.length - n for n in prompt.counts]
        cut = make_cut(
            layer, before, self.state.length, self.visual, choice, rest, self.pruner.positions == "renumber"
        )
        self.state.cuts[layer] = cut
        places = cut.locate_tokens() if before is None else cut.locate_tokens().gather(1, before.index)
        left = places.gather(1, self.raters.clamp(min=0))
        self.raters = torch.where(self.raters >= 0, left, -1)
        self.visual, self.counts = choice.keep.gather(1, cut.step), list(choice.counts)

    def build_once(self, cut: Cut, value: object, make) -> object:
        """`make()`, once for each cut and object: most layers share masks and positions."""
        key = (cut.layer, id(value))
        if key not in self.narrowed:
            self.narrowed[key] = (value, make())  # the object, too: its id must not be used again
        return self.narrowed[key][1]

    def narrow_mask(self, cut: Cut, mask: object) -> Tensor | None:
        if mask is not None and not isinstance(mask, Tensor):
            raise UsageError(
                f"pruning: no way to narrow attention masks of type {type(mask).__name__}; load "
                "the language model with attn_implementation='sdpa'"
            )
        return self.build_once(cut, mask, lambda: cut.narrow_mask(mask, self.total, self.new, not self.flash))

    def rotary(self, cut: Cut, embeddings: object) -> object:
        """(cos, sin) (..., B or 1, T, d) for the tokens that are left."""

        def narrow(each: Tensor) -> Tensor:
            sides = each.shape[:-3]  # Qwen-VL's three directions
            each = each.expand(*sides, len(cut.rotary), -1, -1)
            return each.gather(-2, cut.rotary.unsqueeze(-1).expand(*sides, -1, -1, each.shape[-1]))

        is_one = isinstance(embeddings, Tensor)
        return self.build_once(
            cut, embeddings, lambda: narrow(embeddings) if is_one else tuple(map(narrow, embeddings))
        )

    def narrow_queries(self, cut: Cut, context: QueryContext) -> QueryContext:
        """A query module's context among the tokens that are left."""

        def narrow() -> QueryContext:
            index = cut.locate_tokens().gather(1, context.query_index.clamp(min=0))
            index = torch.where(context.query_index >= 0, index, -1)
            mask = context.question_mask
            mask = mask.gather(2, cut.index.unsqueeze(1).expand(-1, mask.shape[1], -1))
            return QueryContext(index, mask, context.features, context.feature_mask, context.receipt)

        return self.build_once(cut, context, narrow)

    def record_passed_tokens(self) -> None:
        """Tell the pruner how many visual tokens a prefill took through the layers. UsageError if some of its
        layers were never asked."""
        if self.prompt is None:
            return
        if any(self.prompt.counts) and not {*self.pruner.layers} <= {*self.left}:
            raise UsageError(
                "pruning: the language model does not hand keyword arguments down to its "
                "decoder layers, so no visual token was dropped; choose another one"
            )
        first, made = self.prompt.counts, sorted(self.left.items())
        layers, left = [k for k, _ in made], [sum(counts) for _, counts in made]
        self.pruner.passed += sum(expand_to_layers(self.pruner.llm_layers, layers, left, sum(first)))
        self.pruner.rows += sum(n > 0 for n in first)
