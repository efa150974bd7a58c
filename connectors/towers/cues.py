"""Reads a tower's attention: what its patches receive, and their keys, for compressors that choose by them.

Only the block that is asked for computes its attention once more, from its own input; the tower's forward
pass, whose fused kernels give no weights, stays as it is.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.cues import ATTENTION, CLS, KEYS, Cue
from compressors.errors import UsageError
from compressors.selection import without_autocast

INPUT_NAMES = ("hidden_states", "query", "x")  # what attention modules call their first argument
COMPUTING_TYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def find_attention(block: nn.Module) -> Any:
    """The module of a block that makes queries and keys. UsageError for one whose keys depend on more than
    its weights, such as rotary positions."""
    for module in block.modules():
        if isinstance(module, nn.MultiheadAttention):  # open_clip's own ViT
            return module
        is_of_timm = type(module).__module__.startswith("timm.")
        if is_of_timm and type(module).__name__ == "Attention":  # its other kinds have rotary positions
            return module
        # transformers: SigLIP, CLIP, DINOv2; DINOv2 before it had the others' names
        names = dict(module.named_children()).keys()
        if not is_of_timm and (names >= {"q_proj", "k_proj"} or names >= {"query", "key"}):
            return module
    raise UsageError(f"this vision tower gives no cues: its {type(block).__name__} has no plain attention")


def compute_queries_and_keys(attention: Any, states: Tensor) -> tuple[Tensor, Tensor]:
    """Input of an attention module (B, T, C) -> its queries and keys, each (B, heads, T, d), in float32."""
    states = states.to(find_computing_type(attention, states))
    if isinstance(attention, nn.MultiheadAttention):
        projected = nn.functional.linear(states, attention.in_proj_weight, attention.in_proj_bias)
        query, key, _ = projected.chunk(3, -1)
    elif hasattr(attention, "qkv"):
        query, key, _ = attention.qkv(states).chunk(3, -1)
    elif hasattr(attention, "q_proj"):
        query = attention.q_proj(states)
        key = attention.k_proj(states)
    else:
        query = attention.query(states)
        key = attention.key(states)
    heads = count_heads(attention)
    query = rearrange(query, "b t (h d) -> b h t d", h=heads)
    key = rearrange(key, "b t (h d) -> b h t d", h=heads)
    if hasattr(attention, "qkv"):  # timm's may normalise them
        query = attention.q_norm(query)
        key = attention.k_norm(key)
    return query.float(), key.float()


def find_computing_type(attention: nn.Module, states: Tensor) -> torch.dtype:
    """In what its projections take their input: that of its weights, which what comes from a pass under
    autocast may differ from. Quantised weights take it as it is."""
    weights = next(attention.parameters(), states)
    return weights.dtype if weights.dtype in COMPUTING_TYPES else states.dtype


def count_heads(attention: Any) -> int:
    """Heads of an attention module."""
    return getattr(attention, "num_heads", None) or attention.num_attention_heads


def average_attention(query: Tensor, key: Tensor) -> Tensor:
    """Queries (B, heads, Q, d) and keys (B, heads, T, d) -> what each token gets of them, mean over heads and
    queries (B, T)."""
    shares = []
    for image_query, image_key in zip(query, key):  # one image at a time: (heads, Q, T) is large
        scores = image_query @ image_key.mT * image_key.shape[-1] ** -0.5
        shares.append(scores.softmax(-1).mean((0, 1)))
    return torch.stack(shares)


@contextmanager
def record_blocks(blocks: dict[int, nn.Module]) -> Iterator[tuple[dict[int, Tensor], dict[int, Tensor]]]:
    """While it is open, what goes into each block's attention and what comes out of the block, by its number:
    (B, T, C)."""
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    with ExitStack() as stack:
        for number, block in blocks.items():
            attention = find_attention(block)
            is_batch_second = isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
            recorder = BlockRecorder(number, is_batch_second, inputs, outputs)
            handles = [
                attention.register_forward_pre_hook(recorder.keep_input, with_kwargs=True),
                block.register_forward_hook(recorder.keep_output),
            ]
            for handle in handles:
                stack.callback(handle.remove)
        yield inputs, outputs


class BlockRecorder(NamedTuple):
    """The hooks of a block. is_batch_second: its states are (T, B, C)."""

    number: int
    is_batch_second: bool
    inputs: dict[int, Tensor]
    outputs: dict[int, Tensor]

    def keep_input(self, module: nn.Module, args: tuple, kwargs: dict) -> None:  # noqa: ARG002
        """The pre-hook of its attention."""
        if args:
            states = args[0]
        else:
            name = next(name for name in INPUT_NAMES if name in kwargs)
            states = kwargs[name]
        self.inputs[self.number] = states.transpose(0, 1) if self.is_batch_second else states

    def keep_output(self, block: nn.Module, args: tuple, output: Any) -> None:  # noqa: ARG002
        """The hook of the block."""
        states = output[0] if isinstance(output, tuple) else output
        self.outputs[self.number] = states.transpose(0, 1) if self.is_batch_second else states


def compute_cue(
    cue: Cue, attention: Any, states: Tensor, output: Tensor, num_prefix: int, has_cls: bool
) -> Tensor:
    """A cue of each patch (B, N, channels), from a block's attention, what went into it and what the block
    gave, both (B, prefix + N, C). Without autocast, which would round what is compared."""
    if cue.kind == CLS:
        patches = output.shape[1] - num_prefix
        return output[:, :1].expand(-1, patches, -1)
    with without_autocast(states.device.type):
        query, key = compute_queries_and_keys(attention, states)
        if cue.kind == KEYS:
            return key.mean(1)[:, num_prefix:]
        if cue.kind == ATTENTION and has_cls:
            query = query[:, :, :1]  # CLS comes first
        return average_attention(query, key)[:, num_prefix:, None]
