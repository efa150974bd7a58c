"""A query module inside any Hugging Face causal LM, by a forward pre-hook on decoder layers.

The context travels as a keyword argument of the LLM's forward: decoder loops of transformers 5 hand unknown
keyword arguments down to every layer. It is an argument, not a state, so activation checkpointing finds it
again, and decoding steps simply do not pass it: the module acts at prefill only.
"""

from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedConfig, PreTrainedModel

from compressors.errors import UsageError
from connectors.query_module import QueryModule, list_insertions

CONTEXT = "query_context"
ADAPTER_NUMBERS = count(1)


class Receipt:
    """Whether a context has come to a decoder layer. An object of its own: FSDP hands layers copies of a
    dataclass, with whatever is no tensor in them as it is."""

    given = False


@dataclass
class QueryContext:
    """What a query module reads beside the hidden states; shapes as in `connectors.query_module`."""

    query_index: Tensor
    question_mask: Tensor
    features: Tensor
    feature_mask: Tensor
    receipt: Receipt | None = None  # none while all is compiled in one piece
    visual_mask: Tensor | None = None  # for a module that prefuses
    owner: int = 0  # number of the adapter whose module acts; 0: whichever stands at the layers

    def __post_init__(self) -> None:
        if self.receipt is None and not torch.compiler.is_compiling():
            self.receipt = Receipt()

    def hide_tokens(self, attention_mask: Tensor | None) -> None:
        """Nothing is read before the first layer that a mask of tokens (B, T) hides from all of them: visual
        tokens that a compressor leaves empty, or that the LLM is not to see."""
        if self.visual_mask is not None and isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
            self.visual_mask = self.visual_mask & attention_mask.bool().unsqueeze(1)

    def check_read(self, llm: nn.Module) -> None:
        """UsageError after a forward whose decoder kept the context from its layers."""
        if self.receipt is not None and not self.receipt.given:
            raise UsageError(
                f"{type(llm).__name__} does not hand keyword arguments down to its decoder "
                "layers, so a query module cannot act there; choose another language model"
            )


def query_positions(is_query: Tensor, count: int | None = None) -> Tensor:
    """Positions of the True entries of (B, T), ascending, -1 where a row has fewer: (B, S). S is `count` or
    the most any row has (reading that from the device waits for it)."""
    if count is None:
        count = int(is_query.sum(1).max())
    # falling numbers where there is a query: their largest are the first positions
    order = torch.arange(is_query.shape[1], 0, -1, device=is_query.device) * is_query
    value, index = order.topk(count, dim=1)
    return torch.where(value > 0, index, -1)


def make_query_masks(
    query_index: Tensor, question_turn: Tensor, query_turn: Tensor, patch_turn: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, S, T) and (B, S, P): a query reads its own turn's question, and images of turns up to its own.

    question_turn (B, T), query_turn (B, S) and patch_turn (B, P) count from 1; 0 is none."""
    is_query = (query_index >= 0).unsqueeze(-1)  # (B, S, 1): -1 fills rows with fewer
    own_turn = query_turn.unsqueeze(-1)  # (B, S, 1)
    question_mask = is_query & (question_turn.unsqueeze(1) == own_turn) & (own_turn > 0)
    return question_mask, mask_images(query_index, patch_turn, query_turn)


def mask_images(query_index: Tensor, image_turn: Tensor, query_turn: Tensor) -> Tensor:
    """(B, S, N): a query reads what is of images of turns up to its own. image_turn (B, N) and query_turn
    (B, S) count from 1; 0 is none."""
    is_query = (query_index >= 0).unsqueeze(-1)
    image_turn = image_turn.unsqueeze(1)  # (B, 1, N)
    return is_query & (image_turn > 0) & (image_turn <= query_turn.unsqueeze(-1))


def decoder_layers(llm: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a causal LM: its decoder's list of as many modules as hidden layers."""
    decoder = llm.get_decoder()
    count = llm.config.get_text_config().num_hidden_layers
    layers = find_module_list(decoder, count)
    if layers is None:
        raise TypeError(f"{type(llm).__name__} has no ModuleList of its {count} decoder layers")
    return layers


def check_layer_read(layer: Any, index: int) -> None:
    """UsageError for a decoder layer, the one of that index, that attends to keys and values of earlier ones:
    what is written before it no other token reads."""
    attention: Any = getattr(layer, "self_attn", None)
    if getattr(attention, "is_kv_shared_layer", False):
        config = attention.config
        first = config.num_hidden_layers - config.num_kv_shared_layers
        raise UsageError(
            f"query module at={index + 1}: from layer {first + 1} on {type(layer).__name__} takes the keys "
            f"and values of earlier layers, so that no token would read its queries; choose at most {first}"
        )


def read_active(layer: Any, hidden: Tensor) -> Tensor:
    """The hidden states (B, T, D) that a layer works on. With AltUp (Gemma 3n) each token has several, of
    which a layer's attention reads one and the others follow: `hidden` is (streams, B, T, D) then."""
    return hidden[layer.config.altup_active_idx] if hidden.ndim == 4 else hidden


def write_active(layer: Any, hidden: Tensor, updated: Tensor) -> Tensor:
    """`hidden` with what `read_active` gave updated."""
    if hidden.ndim != 4:
        return updated
    streams = list(hidden)
    streams[layer.config.altup_active_idx] = updated
    return torch.stack(streams)


def find_module_list(owner: nn.Module, count: int) -> nn.ModuleList | None:
    """The first list of `count` modules in `owner`."""
    for module in owner.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    return None


def llm_sizes(config: PreTrainedConfig) -> dict[str, int]:
    """A query module's context arguments that an LLM's configuration knows."""
    text = config.get_text_config()
    return {
        "llm_dim": text.hidden_size,
        "llm_heads": text.num_attention_heads,
        "llm_layers": text.num_hidden_layers,
    }


def find_position_limit(config: PreTrainedConfig) -> int | None:
    """Tokens that the language model has positions for, prompt and answer together; None where it does not
    say."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


class QueryAdapter:
    """Mixin for a module that holds `query_module`. Hooks are bound methods: a copy's are its own."""

    query_module: QueryModule | None
    adapter_number = 0  # of one whose hooks stand

    def hook_query_module(self, llm: PreTrainedModel) -> list[RemovableHandle]:
        """Register the hooks on `llm`'s decoder layers; returns their handles. Several models may have one
        LLM: a hook acts on contexts of its own adapter."""
        assert self.query_module is not None  # a model without one is not hooked
        self.adapter_number = next(ADAPTER_NUMBERS)
        layers = decoder_layers(llm)
        handles = []
        for insertion, index in list_insertions(self.query_module):
            layer: Any = layers[index]
            check_layer_read(layer, index)
            hook = partial(self._update_queries, insertion)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    def _update_queries(
        self, insertion: int, layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The hook: a layer's arguments with the query tokens among its hidden states updated."""
        context: QueryContext | None = kwargs.get(CONTEXT)
        if context is None or context.owner not in (0, self.adapter_number):
            return args, kwargs
        if context.receipt is not None:
            context.receipt.given = True
        assert self.query_module is not None  # it was hooked
        # some LLMs give hidden states by position, some by name
        hidden = args[0] if args else kwargs["hidden_states"]
        # where the LLM is spread over devices: the module's is that of the embeddings, as the context's
        device = context.query_index.device
        options = {}
        if self.query_module.prefuses:
            options["visual_mask"] = context.visual_mask
        updated = self.query_module(
            read_active(layer, hidden).to(device),
            context.query_index,
            context.question_mask,
            context.features,
            context.feature_mask,
            insertion,
            **options,
        )
        hidden = write_active(layer, hidden, updated.to(hidden.device))
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}
