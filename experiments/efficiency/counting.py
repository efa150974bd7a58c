"""What can be counted without weights: tokens, parameters, FLOPs by part, bytes of weights and KV cache."""

from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import Cache

from connectors.tiling import Tiling
from connectors.versions import meta_forward
from experiments.config.schema import Config
from experiments.efficiency.subject import LLM, PARTS, TOWER, OfCell, Pixels, Subject
from experiments.efficiency.timing import OTHER, flops_by_part
from experiments.models.random_model import TEXT
from experiments.stages.module import trainable_parts


@dataclass(frozen=True)
class Counts:
    """Of a prefill of `rows` rows and of the step after it.

    visual, query, text    tokens of a row
    parameters             by part; what belongs to none as `other`
    prefill                FLOPs by part, a multiply-add counted as two
    decode                 FLOPs of one more token of one row
    weight_bytes           of all parameters
    cache_bytes            keys and values after the prefill
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

    def asdict(self) -> dict:
        """For JSON."""
        return asdict(self)


@meta_forward()
def count(
    subject: Subject, pictures: list[list[Image.Image]], text: int = TEXT, dtype: torch.dtype = torch.bfloat16
) -> Counts:
    """Of a subject on the meta device. `pictures`: those of each row."""
    rows, size = len(pictures), dtype.itemsize
    pixels = subject.pixels(pictures)
    visual = subject.visual_tokens(pixels)
    found, cache = prefill(subject, on_meta(pixels), rows, visual // rows, text)
    row, one = (torch.empty(1, n, subject.width, device="meta") for n in (cache.get_seq_length(), 1))
    past = subject.language_model(row, visual=visual // rows)
    step = flops_by_part(lambda: subject.language_model(one, past), subject.parts)
    parameters = parameters_by_part(subject)
    weights, kept = sum(parameters.values()) * size, cache_elements(cache) * size
    read = (parameters[LLM] - embedding_apart(subject)) * size + kept
    return Counts(
        visual // rows, subject.query_tokens, text, parameters, found, sum(step.values()), weights, kept, read
    )


def prefill(
    subject: Subject, pixels: Pixels, rows: int, visual: int, text: int, keep: int = 1
) -> tuple[dict[str, int], Cache]:
    """FLOPs by part, and the cache that a prefill leaves. `keep`: logits of so many last tokens, 0: all."""
    tokens, kept = visual + subject.query_tokens + text, []

    def whole() -> None:
        with torch.device("meta"):
            subject.encode(pixels, rows, tokens, text)
            embeds = torch.empty(rows, tokens, subject.width)
            kept.append(subject.language_model(embeds, keep=keep, visual=visual))

    return flops_by_part(whole, subject.parts), kept[0]


def cell_prefill(
    subject: OfCell, text: int = TEXT, tiles: int | None = None, keep: int = 1
) -> dict[str, int]:
    """FLOPs by part of one row of a cell, with one image of as many crops as it can have; `tiles` a side,
    None: as in evaluation."""
    crops = subject.tiling.most_crops if tiles is None else Tiling(tiles).most_crops
    pixels = {"pixel_values": torch.empty(1, crops, 3, subject.size, subject.size, device="meta")}
    return prefill(subject, pixels, 1, subject.visual_tokens(pixels), text, keep)[0]


def training_flops(subject: OfCell, config: Config, stage: str, text: int, tiles: int, cached: bool) -> int:
    """FLOPs of one row of a training step, forward and backward: three times the forward's for a part that is
    trained, twice for a frozen language model, which hands gradients on, once for a frozen tower, none where
    its features are cached. What gradient checkpointing computes again does not count."""
    names = dict(zip(PARTS, ("vision_tower", "compressor", "projector", "query_module", "language_model")))
    trained, total = trainable_parts(stage, config.tower.train), 0
    for part, count in cell_prefill(subject, text, tiles, keep=0).items():
        frozen = (0 if cached else 1) if part == TOWER else 2
        total += count * (3 if names.get(part) in trained else frozen)
    return total


def on_meta(pixels: Pixels) -> Pixels:
    """Without content, but for whole numbers: sizes, which a model reads."""
    return {name: value.to("meta") if value.is_floating_point() else value for name, value in pixels.items()}


def parameters_by_part(subject: Subject) -> dict[str, int]:
    """Each parameter once, a part within another as its own."""
    owner = dict.fromkeys(subject.model.parameters(), OTHER)
    for name, modules in subject.parts.items():
        for module in modules:
            owner |= dict.fromkeys(module.parameters(), name)
    found = dict.fromkeys([*subject.parts, OTHER], 0)
    for parameter, name in owner.items():
        found[name] += parameter.numel()
    return found


def tensors(cache: Cache) -> list[Tensor]:
    """Keys and values of all layers."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def cache_elements(cache: Cache) -> int:
    """Numbers that a cache holds."""
    return sum(tensor.numel() for tensor in tensors(cache))


def embedding_apart(subject: Subject) -> int:
    """Parameters of an input embedding of its own, of which a step reads a row."""
    embedding = subject.model.get_input_embeddings().weight
    return 0 if subject.model.get_output_embeddings().weight is embedding else embedding.numel()
