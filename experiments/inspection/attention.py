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
    """What a model saw and said about one question.

    name         the compressor's
    compressor   its weights over the patches of all crops, (crops, H, W), their sum 1; None: all alike
    queries      EmbQ's attention by insertion and layer, (heads, crops, H, W), a head's sum 1: the mean over
                 the turn's query tokens
    """

    name: str
    question: str
    answer: str = ""
    compressor: Tensor | None = None
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
    record = AttentionRecord(model.config.compressor, question)
    with torch.inference_mode(), watch_attention(model, record):
        ids = model.generate(**batch, do_sample=False, max_new_tokens=max_new_tokens)
    answer_ids = ids[0, batch["input_ids"].shape[1] :]
    record.answer = processor.tokenizer.decode(answer_ids, skip_special_tokens=True).strip()
    if record.compressor is None and not record.queries:
        raise UsageError(
            f"compressor {model.config.compressor} weighs no patch more than another and there "
            "is no EmbQ: nothing to show; choose a model with sap, or with +embq"
        )
    return record


@contextmanager
def watch_attention(model: FlashSlothForConditionalGeneration, record: AttentionRecord) -> Iterator[None]:
    """Note weights into `record` while the model runs.

    They are computed again beside it, from the inputs that its own modules get, so that it computes what it
    always does. Both modules act in the prefill only, once for all tokens of an answer.
    """
    grid: list[int] = []  # crops, H, W: the compressor sees them before EmbQ does

    def note_compressor(module: Any, arguments: tuple[Any, ...]) -> None:
        features = arguments[0]  # (crops, H, W, C)
        grid[:] = features.shape[:3]
        weights = module.attention(*arguments)
        if weights is not None and weights.max() > weights.min():  # one that weighs all alike shows nothing
            record.compressor = (weights / len(weights)).float().cpu()

    def make_hook(name: str) -> Callable[[Any, tuple[Any, ...]], None]:
        def note_queries(module: Any, arguments: tuple[Any, ...]) -> None:
            query, key, _, mask = arguments
            weights = module.weights(query, key, mask)[0].mean(1)  # (heads, P)
            record.queries[name] = weights.unflatten(1, tuple(grid)).cpu()

        return note_queries

    handles = [model.compressor.register_forward_pre_hook(note_compressor)]
    for name, module in find_image_attention(model):
        handles.append(module.register_forward_pre_hook(make_hook(name)))
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
