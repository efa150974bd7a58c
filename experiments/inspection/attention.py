"""Where a model looks while it answers: its compressor's weights and EmbQ's attention to the picture."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from compressors.errors import UsageError
from connectors.embq import Attention, EmbQ
from experiments.inspection.conversation import Chat
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor


@dataclass
class AttentionRecord:
    """What a model saw and said. Weights over the patches of all crops, (crops, H, W), their sum 1; EmbQ's by
    insertion and layer, (heads, crops, H, W), the mean over the turn's query tokens."""

    name: str  # the compressor's
    question: str
    answer: str = ""
    compressor: Tensor | None = None  # None: all patches alike
    queries: dict[str, Tensor] = field(default_factory=dict)


def record_attention(
    model: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
    picture: Image.Image,
    question: str,
    max_new_tokens: int = 32,
) -> AttentionRecord:
    """Answer one question about one picture, and note where compressor and query module look meanwhile.
    UsageError if neither has weights to show."""
    if not processor.image_tokens:
        raise UsageError("the model is blind (compressor=none): it looks nowhere")
    batch: dict[str, Any] = dict(Chat(model, processor, picture, max_new_tokens).make_inputs(question))
    seen = AttentionRecord(model.config.compressor, question)
    with torch.inference_mode(), watch_attention(model, seen):
        out = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)
    new = out[0, batch["input_ids"].shape[1] :]
    seen.answer = processor.tokenizer.decode(new, skip_special_tokens=True).strip()
    if seen.compressor is None and not seen.queries:
        raise UsageError(
            f"compressor {model.config.compressor} weighs no patch more than another and there "
            "is no EmbQ: nothing to show; choose a model with sap, or with +embq"
        )
    return seen


@contextmanager
def watch_attention(model: FlashSlothForConditionalGeneration, seen: AttentionRecord) -> Iterator[None]:
    """Notes weights into `seen` while the model runs: computed again beside it from the inputs that its own
    modules get, so that it computes what it always does."""
    grid: list[int] = []  # crops, H, W

    def note_compressor(module: Any, args: tuple[Any, ...]) -> None:
        features = args[0]
        grid[:] = features.shape[:3]
        weights = module.attention(*args)
        if weights is not None and weights.max() > weights.min():  # one that weighs all alike shows nothing
            seen.compressor = (weights / len(weights)).float().cpu()

    def make_hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def note_weights(module: Any, args: tuple[Any, ...]) -> None:
            query, key, _, mask = args
            weights = module.weights(query, key, mask)[0].mean(1)  # (heads, P)
            seen.queries[name] = weights.unflatten(1, tuple(grid)).cpu()

        return note_weights

    handles = [model.compressor.register_forward_pre_hook(note_compressor)]
    handles += [
        module.register_forward_pre_hook(make_hook(name)) for name, module in find_image_attention(model)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_image_attention(model: FlashSlothForConditionalGeneration) -> list[tuple[str, Attention]]:
    """(name, attention over patches) of each layer of EmbQ; empty for other query modules."""
    module = model.query_module
    if not isinstance(module, EmbQ):
        return []
    blocks: list[Any] = list(module.blocks)
    several = any(len(block.layers) > 1 for block in blocks)
    named_attention = []
    for at, block in zip(module.at, blocks):
        for number, layer in enumerate(block.layers, 1):
            name = f"EmbQ at decoder layer {at}"
            if several:
                name += f", its layer {number}"
            named_attention.append((name, layer.i2q_attn))
    return named_attention
