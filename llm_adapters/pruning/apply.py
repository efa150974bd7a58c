"""The mechanism: forward hooks on the decoder layers of any Hugging Face causal LM.

    layer k        its attention also computes the raters' rows (`attention.py`)
    layer k + 1    its pre-hook asks the pruner, and narrows hidden states, masks and positions (`run.py`)
    the last one   its hook puts the hidden states back in place, so that logits, labels and positions of the
                   whole sequence stay aligned; dropped tokens are zeros there

The context travels as a keyword argument, as the query module's does. What decoding needs of it lies on the
KV cache, whose layers behind k hold fewer tokens than the first; masks are narrowed to them.
"""

import inspect
from typing import Any, cast

from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from compressors.errors import UsageError
from llm_adapters.adapter import ADAPTER_NUMBERS, decoder_layers, llm_sizes
from llm_adapters.adapter import CONTEXT as QUERIES
from llm_adapters.pruning.attention import (
    PRUNING_CONTEXT,
    DispatchedAttention,
    disable_scoring,
    enable_scoring,
    find_attention,
)
from llm_adapters.pruning.base import Prompt, Pruner, registry
from llm_adapters.pruning.cuts import Cut, PrefillState
from llm_adapters.pruning.prompt import make_prompt
from llm_adapters.pruning.run import PrunedPass
from llm_adapters.pruning.unrotated import catch_unrotated

PRUNING_STATE = "slothkit_pruning"  # attribute of a KV cache


class PruningAdapter:
    """Mixin for a PreTrainedModel with a `language_model`, whose forward calls `start_pruning` and hands the
    context on. Hooks are bound methods: a copy's are its own. Several models may have one LLM: a hook acts in
    passes of its own adapter, and goes with that adapter's pruner."""

    pruner: Pruner | None = None
    pruning_number = 0  # of one whose hooks stand
    config: PreTrainedConfig  # where `set_pruner` notes the pruner
    language_model: PreTrainedModel

    @property
    def keeps_positions(self) -> bool:
        """Whether visual tokens have the positions of their patches, with gaps where some are left out."""
        return False

    def set_pruner(self, name: str | None, **knobs: Any) -> None:
        """Drop visual tokens inside the LLM from now on, as the pruner `name` does; None: keep all.
        UsageError for a name, a knob or an LLM that cannot be; nothing has changed then."""
        depth = llm_sizes(self.config)["llm_layers"]
        pruner = None
        if name is not None:
            pruner = registry.create(name, llm_layers=depth, **knobs)
        self.use_pruner(pruner)
        self.config.pruner = name
        self.config.pruner_knobs = knobs or None

    def use_pruner(self, pruner: Pruner | None) -> None:
        """The same with a pruner that is made already; the configuration does not tell of it."""
        layers: list[Any] = list(decoder_layers(self.language_model))  # Any: layers are given attributes here
        scored: dict[int, DispatchedAttention] = {}  # by layer
        if pruner is not None:  # before anything changes: it may be refused
            check_positions(pruner, self.keeps_positions)
            for number in list_scored_layers(pruner):
                scored[number] = find_attention(layers[number])
            if "normed" in pruner.needs:
                find_last_norm(self.language_model)
        for layer in layers:
            release_layer(layer, self.pruning_number)
        self.pruner = pruner
        if pruner is None:
            return
        if not self.pruning_number:
            self.pruning_number = next(ADAPTER_NUMBERS)
        for number, layer in enumerate(layers):
            # attributes, so that wrappers and copies keep them; a signature takes long to read
            layer.pruning_layer = number
            layer.pruning_arguments = list(inspect.signature(type(layer).forward).parameters)[1:]
            # before a query module's hook, which finds its tokens by the positions that are left
            handle = layer.register_forward_pre_hook(self._narrow_layer, with_kwargs=True, prepend=True)
            handles_by_adapter = vars(layer).setdefault("pruning_handles", {})
            handles_by_adapter[self.pruning_number] = [handle]
        last = layers[-1]
        widening = last.register_forward_hook(self._widen_output, with_kwargs=True)
        last.pruning_handles[self.pruning_number].append(widening)
        for number, module in scored.items():
            module.pruning_layer = number
            enable_scoring(module, self.pruning_number)
            if not pruner.rotary:
                hook = cast(nn.Module, module).register_forward_pre_hook
                handles = layers[number].pruning_handles[self.pruning_number]
                handles.append(hook(self._score_unrotated, with_kwargs=True))

    def describe_prompt(
        self,
        input_ids: Tensor,
        turns: Tensor,
        length: int,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        embeds: Tensor,
    ) -> Prompt | None:
        """What the pruner sees of a prompt of `length` tokens with images; None without a pruner."""
        if self.pruner is None:
            return None
        is_image = input_ids == self.config.image_token_id
        is_text = (turns > 0) & ~is_image & (input_ids != self.config.query_token_id)
        return make_prompt(is_image, is_text, length, attention_mask, labels, embeds)

    def start_pruning(
        self, prompt: Prompt | None, length: int, cache: Cache | None, use_cache: bool | None
    ) -> tuple[PrunedPass | None, Cache | None]:
        """The context of a forward pass of `length` tokens (None: nothing to do), and its KV cache; `prompt`
        where images are given. A cache behind another adapter's prompt is left to that one. UsageError for a
        cache that cannot be. Under torch.compile the graph breaks where a pruner counts."""
        if self.pruner is None:
            return None, cache
        llm = self.language_model
        past = 0
        if cache is not None:
            past = cache.get_seq_length()
        flash = "flash" in (llm.config._attn_implementation or "")
        if flash and self.pruner.proportional:
            raise UsageError(
                f"{self.pruner.registered_name}: proportional attention needs masks, which "
                f"{llm.config._attn_implementation} does not take; set proportional=false, or load the "
                "language model with attn_implementation='sdpa'"
            )
        if not past and hasattr(cache, PRUNING_STATE):
            delattr(cache, PRUNING_STATE)  # of a prompt before the cache was emptied
        if prompt is None:
            state = getattr(cache, PRUNING_STATE, None)
            if state is None or state.owner != self.pruning_number:
                return None, cache
            assert cache is not None  # the state lies on it
            check_cache_whole(cache, state, past)
            return PrunedPass(self.pruner, state, past + length, length, flash), cache
        check_cache_empty(cache)
        state = PrefillState(length, self.pruning_number)
        if cache is None:
            if use_cache is None:
                use_cache = llm.config.use_cache
            if use_cache:  # made here and not by the LLM: the state lies on it
                cache = DynamicCache()
        if cache is not None:
            use_unwindowed_layers(cache)
            setattr(cache, PRUNING_STATE, state)
        run = PrunedPass(self.pruner, state, length, length, flash)
        return run.start_prefill(prompt), cache

    def _find_pass(self, kwargs: dict[str, Any]) -> PrunedPass | None:
        """The pass that a layer runs in, if it is one of this adapter's."""
        run: PrunedPass | None = kwargs.get(PRUNING_CONTEXT)
        if run is None or run.state.owner != self.pruning_number:
            return None
        return run

    def _narrow_layer(
        self, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The pre-hook of a layer: its arguments without the tokens that are dropped before it."""
        run = self._find_pass(kwargs)
        if run is None:
            return None
        names = layer.pruning_arguments  # without self
        arguments = {**dict(zip(names, args)), **kwargs}
        hidden = arguments.pop(names[0])
        number = layer.pruning_layer
        hidden = run.add_deepstack(number, hidden)
        if run.is_undecided(number):
            norm = None
            if "normed" in run.pruner.needs:
                norm = find_last_norm(self.language_model)
            run.ask_pruner(number, hidden, type(layer).__name__, norm)
        cut = run.state.last_cut(number)
        if cut is None:
            return (hidden,), arguments
        is_prefill = run.prompt is not None
        if is_prefill and cut.layer == number:  # behind an earlier cut they are narrow already
            hidden = cut.move_to(hidden.device).narrow_hidden(hidden)
        if "attention_mask" in arguments:
            arguments["attention_mask"] = run.narrow_mask(cut, arguments["attention_mask"])
        if is_prefill:
            self._narrow_positions(run, cut, arguments)
            run.narrow_token_values(cut, arguments)
        return (hidden,), arguments

    def _score_unrotated(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The pre-hook of a scoring layer's attention, for a pruner whose attention has no positions."""
        run = self._find_pass(kwargs)
        layer = module.pruning_layer + 1
        if run is None or not run.is_undecided(layer):
            return
        reached = catch_unrotated(module, args, kwargs)
        if reached is not None:  # without it the pruner is told so where it is asked
            run.compute_scores(layer, reached.query, reached.key, reached.mask, reached.arguments)

    def _narrow_positions(self, run: PrunedPass, cut: Cut, arguments: dict[str, Any]) -> None:
        """What belongs to positions in a layer's arguments, for the tokens that are left."""
        positions = arguments.get("position_ids")
        embeddings = arguments.get("position_embeddings")
        if embeddings is not None:
            arguments["position_embeddings"] = run.narrow_rotary(cut, embeddings)
            if positions is not None:  # in cos and sin already; to flash attention gaps are other documents
                arguments["position_ids"] = None
        elif positions is not None:
            rotary = cut.move_to(positions.device).rotary
            arguments["position_ids"] = positions.expand(len(rotary), -1).gather(1, rotary)
        if arguments.get("cache_position") is not None:
            arguments["cache_position"] = arguments["cache_position"][: cut.index.shape[1]]
        if arguments.get(QUERIES) is not None:
            arguments[QUERIES] = run.narrow_queries(cut, arguments[QUERIES])

    def _widen_output(
        self,
        layer: Any,
        args: tuple[Any, ...],  # noqa: ARG002
        kwargs: dict[str, Any],
        output: Any,
    ) -> Any:
        """The hook of the last layer: its hidden states with zeros where tokens were dropped."""
        run = self._find_pass(kwargs)
        if run is None or run.prompt is None:
            return output
        is_tuple = isinstance(output, tuple)
        hidden = output[0] if is_tuple else output
        hidden = run.add_deepstack(layer.pruning_layer + 1, hidden)
        cut = run.state.last_cut(layer.pruning_layer)
        if cut is not None:
            hidden = cut.move_to(hidden.device).widen_hidden(hidden)
        return (hidden, *output[1:]) if is_tuple else hidden


def release_layer(layer: nn.Module, number: int) -> None:
    """Take away what the pruner of the adapter `number` has left on a decoder layer, if anything."""
    handles = vars(layer).get("pruning_handles", {})
    for handle in handles.pop(number, ()):
        handle.remove()
    for module in layer.modules():
        disable_scoring(module, number)
    if not handles:
        for name in ("pruning_handles", "pruning_arguments", "pruning_layer"):
            vars(layer).pop(name, None)


def check_positions(pruner: Pruner, keeps_positions: bool) -> None:
    """UsageError for a pruner that renumbers what a compressor has left gaps in: tokens would move up to the
    positions of others, which are not next to each other, the text before an image in among its patches."""
    if keeps_positions and pruner.positions == "renumber":
        name = pruner.registered_name
        raise UsageError(
            f"{name}.positions=renumber: the compressor has positions=keep, whose gaps cannot be renumbered; "
            f"set {name}.positions=keep, or the compressor's to renumber"
        )


def list_scored_layers(pruner: Pruner) -> list[int]:
    """The layers, from 0, whose attention tells the pruner something."""
    if not {"attention", "keys"} & set(pruner.needs):
        return []
    return [count - 1 for count in pruner.layers]


def find_last_norm(llm: PreTrainedModel) -> nn.Module:
    """The norm behind the last decoder layer, or a UsageError where there is none."""
    layers = decoder_layers(llm)
    norms = []
    for owner in llm.get_decoder().modules():
        children = list(owner.children())
        if layers in children:
            norms = [child for child in children if "norm" in type(child).__name__.lower()]
    if not norms:
        raise UsageError(
            f"pruning: {type(llm).__name__} has no norm behind its decoder layers, which this pruner reads "
            "hidden states through; choose another pruner"
        )
    return norms[-1]  # some have one before the layers, too


WHOLE_PROMPT = "give the whole conversation at once, without prefill_chunk_size"


def check_cache_empty(cache: Cache | None) -> None:
    """UsageError for images that come behind other tokens."""
    if cache is not None and cache.get_seq_length():
        raise UsageError(f"pruning: images were given with a KV cache that is not empty; {WHOLE_PROMPT}")


def use_unwindowed_layers(cache: Cache) -> None:
    """Layers of an empty cache that forget what left their window become ones that keep all: a window counts
    tokens of the prompt, dropped ones too, and the masks say it. UsageError for a cache with a fixed place
    for every token."""
    plain_layers = (DynamicLayer, DynamicSlidingWindowLayer)
    is_plain = isinstance(cache, DynamicCache)
    if is_plain:  # others need not have layers
        is_plain = all(type(layer) in plain_layers for layer in cache.layers)
    if not is_plain:
        raise UsageError(
            f"pruning: layers of a {type(cache).__name__} cannot differ in length; generate "
            "without cache_implementation, or take the pruner away with set_pruner(None)"
        )
    cache.layers = [DynamicLayer() for _ in cache.layers]


def check_cache_whole(cache: Cache, state: PrefillState, past: int) -> None:
    """UsageError for a cache that was cut back into the prompt, or has other rows than it. Guessed tokens
    that were taken back leave the narrowed layers, too: transformers before 5.18 cuts all to one length."""
    layers: list[Any] = cache.layers  # Any: the base class of cache layers has no `crop`
    last = len(layers) - 1
    rows = len(layers[last].keys)
    if not state.fit_rows(rows):
        raise UsageError(
            f"pruning: the KV cache has {rows} rows and its pruned prompt has {state.count_rows()}; only the "
            "cache of one row can be repeated: repeat, or choose, rows of the prompt"
        )
    is_whole = past >= state.length or state.truncate_prefill(past)
    since = past - state.length  # tokens behind the prompt
    if is_whole:
        for number, layer in enumerate(layers):
            taken_back = layer.get_seq_length() - state.count_cached(number) - since
            if taken_back > 0:
                layer.crop(-taken_back)
    if not is_whole or cache.get_seq_length(last) != state.count_cached(last) + since:
        raise UsageError(
            f"pruning: the KV cache has {past} tokens in its first layer and "
            f"{cache.get_seq_length(last)} in its last; it was cut back into a pruned prompt"
        )
