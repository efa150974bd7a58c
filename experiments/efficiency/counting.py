"""What can be counted without weights: tokens, parameters, FLOPs by part, bytes of weights and KV cache."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from transformers import Cache

from connectors.tiling import Tiling
from experiments.config.schema import Config
from experiments.efficiency.subject import (
    COMPRESSOR,
    LLM,
    PROJECTOR,
    QUERY_PART,
    TOWER,
    CellSubject,
    CostSubject,
    PictureRows,
    PixelInputs,
)
from experiments.efficiency.timing import OTHER_PART, allow_counting, count_flops, count_flops_by_part
from experiments.models.random_model import TEXT_TOKENS, split_text_tokens
from experiments.stages.training.module import choose_trainable_parts
from llm_adapters.answers import can_split_head

# parts as a table names them -> as a stage's trainable parts are named
TRAINABLE_NAMES = {
    TOWER: "vision_tower",
    COMPRESSOR: "compressor",
    PROJECTOR: "projector",
    QUERY_PART: "query_module",
    LLM: "language_model",
}
# a part's FLOPs of a training step over those of its forward: the gradients of the outputs and of the weights
# cost as much as the forward each
TRAINED_FACTOR = 3
FROZEN_LLM_FACTOR = 2  # it hands gradients on to what feeds it, and keeps none of its own
FROZEN_TOWER_FACTOR = 1  # nothing below it is trained


@dataclass(frozen=True)
class PrefillCounts:
    """Of a batch's prefill and of the step after it.

    visual, query, text    tokens of a row
    parameters             by part; what belongs to none as `other`
    prefill                FLOPs by part, a multiply-add counted as two
    decode                 FLOPs of one more token of one row
    weight_bytes           of all these parameters
    cache_bytes            keys and values after the prefill, and the states of layers without them
    llm_bytes              of the language model's parameters, without an input embedding that is not the
                           output layer's too, and of the cache: what a decoding step reads
    """

    visual: int
    query: int
    text: int
    parameters: dict[str, int]
    prefill: dict[str, int]
    decode: int
    weight_bytes: int
    cache_bytes: int
    llm_bytes: int


@allow_counting()
def count_subject(
    subject: CostSubject,
    pictures: PictureRows,
    text: int = TEXT_TOKENS,
    dtype: torch.dtype = torch.bfloat16,
) -> PrefillCounts:
    """Of a subject on the meta device. `pictures`: those of each row."""
    rows = len(pictures)
    pixels = subject.prepare_pixels(pictures)
    visual = subject.count_visual_tokens(pixels) // rows
    prefill, cache = count_prefill_flops(subject, move_to_meta(pixels), rows, visual, text)
    parameters = count_parameters_by_part(subject)
    cache_bytes = count_cache_elements(cache) * dtype.itemsize
    read_parameters = parameters[LLM] - count_separate_embedding(subject)
    return PrefillCounts(
        visual=visual,
        query=subject.query_tokens,
        text=text,
        parameters=parameters,
        prefill=prefill,
        decode=count_decode_flops(subject, cache.get_seq_length(), visual),
        weight_bytes=sum(parameters.values()) * dtype.itemsize,
        cache_bytes=cache_bytes,
        llm_bytes=read_parameters * dtype.itemsize + cache_bytes,
    )


def count_decode_flops(subject: CostSubject, length: int, visual: int) -> int:
    """FLOPs of one more token of a row, after a prefill of `length` tokens, of which `visual` are visual."""
    # with keys and values of its own: the cache of a batch has those of all rows
    prompt = torch.empty(1, length, subject.llm_width, device="meta")
    token = torch.empty(1, 1, subject.llm_width, device="meta")
    cache = subject.language_model(prompt, visual=visual)
    return count_flops(lambda: subject.language_model(token, cache))


def count_prefill_flops(
    subject: CostSubject, pixels: PixelInputs, rows: int, visual: int, text: int, keep: int = 1
) -> tuple[dict[str, int], Cache]:
    """FLOPs by part, and the cache that a prefill leaves. `keep`: logits of so many last tokens, 0: all."""
    tokens = visual + subject.query_tokens + text
    caches: list[Cache] = []

    def run_prefill() -> None:
        with torch.device("meta"):
            subject.encode_images(pixels, rows, tokens, text)
            embeds = torch.empty(rows, tokens, subject.llm_width)
            caches.append(subject.language_model(embeds, keep=keep, visual=visual))

    flops = count_flops_by_part(run_prefill, subject.parts, subject.methods)
    return flops, caches[0]


def count_cell_prefill_flops(
    subject: CellSubject, text: int = TEXT_TOKENS, tiles: int | None = None, keep: int = 1
) -> dict[str, int]:
    """FLOPs by part of one row of a cell, with one image of as many crops as it can have; `tiles` a side,
    None: as in evaluation."""
    tiling = subject.tiling
    if tiles is not None:
        tiling = Tiling(tiles)
    shape = (1, tiling.most_crops, 3, subject.size, subject.size)
    pixels = {"pixel_values": torch.empty(shape, device="meta")}
    visual = subject.count_visual_tokens(pixels)
    flops, _ = count_prefill_flops(subject, pixels, 1, visual, text, keep)
    return flops


def count_training_flops(
    subject: CellSubject, config: Config, stage: str, text: int, tiles: int, cached: bool
) -> int:
    """FLOPs of one row of a training step, forward and backward: three times the forward's for a part that is
    trained, twice for a frozen language model, which hands gradients on, once for a frozen tower, none where
    its features are cached. What gradient checkpointing computes again does not count, and logits where the
    step computes them: of answer tokens."""
    trained_parts = set(choose_trainable_parts(stage, config.tower.train))
    if config.lora.rank:  # its adapters are little beside the language model, which is frozen
        trained_parts.discard("language_model")
    _, _, answer_tokens = split_text_tokens(text)
    if not can_split_head(subject.model.language_model):
        answer_tokens = 0  # of all: such an LLM is run whole
    total = 0
    for part, flops in count_cell_prefill_flops(subject, text, tiles, keep=answer_tokens).items():
        if TRAINABLE_NAMES.get(part) in trained_parts:
            factor = TRAINED_FACTOR
        elif part == TOWER and cached:
            factor = 0  # it does not run
        elif part == TOWER:
            factor = FROZEN_TOWER_FACTOR
        else:
            factor = FROZEN_LLM_FACTOR
        total += flops * factor
    return total


def move_to_meta(pixels: PixelInputs) -> PixelInputs:
    """Without content, but for whole numbers: sizes, which a model reads."""
    moved = dict(pixels)  # counting needs no more of pixels than their shape
    for name, value in pixels.items():
        if value.is_floating_point():
            moved[name] = value.to("meta")
    return moved


def count_parameters_by_part(subject: CostSubject) -> dict[str, int]:
    """Each parameter once, a part within another as its own."""
    owner: dict[nn.Parameter, str] = dict.fromkeys(subject.list_parameters(), OTHER_PART)
    # parts come in the order of a forward pass: one inside another (Qwen2-VL's projector) after it
    for part, modules in subject.parts.items():
        for module in modules:
            owner |= dict.fromkeys(module.parameters(), part)
    # without the parts that a model does not have, but with `other`: it shows what a part has missed
    counts = dict.fromkeys([*subject.parts, OTHER_PART], 0)
    for parameter, part in owner.items():
        counts[part] += parameter.numel()
    return counts


def count_cache_elements(cache: Cache) -> int:
    """Numbers that a cache holds, of all layers: keys and values (B, heads, T, D), and what layers of linear
    attention or state spaces keep in their place, of one size for any T."""
    elements = 0
    # each kind of layer names its tensors differently, and a few models keep them in the cache itself; sizes
    # noted as tensors are whole numbers
    for holder in (cache, *getattr(cache, "layers", ())):
        for value in tree_leaves(vars(holder)):
            if isinstance(value, Tensor) and value.is_floating_point():
                elements += value.numel()
    return elements


def count_separate_embedding(subject: CostSubject) -> int:
    """Parameters of an input embedding of its own, of which a step reads a row."""
    embedding = cast(nn.Embedding, subject.model.get_input_embeddings()).weight
    output = cast(nn.Linear, subject.model.get_output_embeddings()).weight
    if output is embedding:  # tied: the output layer reads all of it in every step
        return 0
    return embedding.numel()
