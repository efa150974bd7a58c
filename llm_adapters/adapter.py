"""A query module inside any Hugging Face causal LM, by a forward pre-hook on decoder layers.

The context travels as a keyword argument of the LLM's forward: decoder loops of transformers 5 hand unknown
keyword arguments down to every layer. It is an argument, not a state, so activation checkpointing finds it
again, and decoding steps simply do not pass it: the module acts at prefill only.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from connectors.query_module import QueryModule, list_insertions

CONTEXT = "query_context"


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

    def __post_init__(self) -> None:
        if self.receipt is None and not torch.compiler.is_compiling():
            self.receipt = Receipt()

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
    order = torch.arange(is_query.shape[1], 0, -1, device=is_query.device) * is_query
    value, index = order.topk(count, dim=1)
    return torch.where(value > 0, index, -1)


def make_query_masks(
    query_index: Tensor, question_turn: Tensor, query_turn: Tensor, patch_turn: Tensor
) -> tuple[Tensor, Tensor]:
    """(B, S, T) and (B, S, P): a query reads its own turn's question, and images of turns up to its own.

    question_turn (B, T), query_turn (B, S) and patch_turn (B, P) count from 1; 0 is none."""
    real = (query_index >= 0).unsqueeze(-1)
    asked = query_turn.unsqueeze(-1)
    question = real & (question_turn.unsqueeze(1) == asked) & (asked > 0)
    patches = patch_turn.unsqueeze(1)
    return question, real & (patches > 0) & (patches <= asked)


def decoder_layers(llm: nn.Module) -> nn.ModuleList:
    """The decoder layers of a causal LM: its decoder's list of as many modules as hidden layers."""
    decoder = llm.get_decoder()
    count = llm.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise TypeError(f"{type(llm).__name__} has no ModuleList of its {count} decoder layers")


def llm_sizes(config) -> dict[str, int]:
    """A query module's context arguments that an LLM's configuration knows."""
    text = config.get_text_config()
    sizes = (text.hidden_size, text.num_attention_heads, text.num_hidden_layers)
    return dict(zip(("llm_dim", "llm_heads", "llm_layers"), sizes))


class QueryAdapter:
    """Mixin for a module that holds `query_module`. Hooks are bound methods: a copy's are its own."""

    query_module: QueryModule | None

    def hook_query_module(self, llm: nn.Module) -> list:
        """Register the hooks on `llm`'s decoder layers; returns their handles."""
        layers = decoder_layers(llm)
        handles = []
        for insertion, layer in list_insertions(self.query_module):
            layers[layer].query_insertion = insertion  # an attribute, so that wrappers and copies keep it
            handles.append(layers[layer].register_forward_pre_hook(self._before_layer, with_kwargs=True))
        return handles

    def _before_layer(self, layer: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        context: QueryContext | None = kwargs.get(CONTEXT)
        if context is None:
            return args, kwargs
        if context.receipt is not None:
            context.receipt.given = True
        hidden = args[0] if args else kwargs["hidden_states"]
        hidden = self.query_module(
            hidden,
            context.query_index,
            context.question_mask,
            context.features,
            context.feature_mask,
            layer.query_insertion,
        )
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}
