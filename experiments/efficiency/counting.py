"""What can be counted without weights: tokens, parameters, FLOPs by part, bytes of weights and KV cache."""

from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import Cache

from connectors.tiling import Tiling
from connectors.versions import allow_meta_forward
from experiments.config.schema import Config
from experiments.efficiency.subject import LLM, MODEL_PARTS, TOWER, CellSubject, CostSubject, PixelInputs
from experiments.efficiency.timing import OTHER_PART, count_flops_by_part
from experiments.models.random_model import TEXT_TOKENS
from experiments.stages.module import choose_trainable_parts


@dataclass(frozen=True)
class PrefillCounts:
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

    def to_json_dict(self) -> dict:
        """For JSON."""
        return asdict(self)


@allow_meta_forward()
def count_subject(
    subject: CostSubject,
    pictures: list[list[Image.Image]],
    text: int = TEXT_TOKENS,
    dtype: torch.dtype = torch.bfloat16,
) -> PrefillCounts:
    """Of a subject on the meta device. `pictures`: those of each row."""
    rows, size = len(pictures), dtype.itemsize
    pixels = subject.prepare_pixels(pictures)
    visual = subject.count_visual_tokens(pixels)
    found, cache = count_prefill_flops(subject, move_to_meta(pixels), rows, visual // rows, text)
    row, one = (torch.empty(1, n, subject.llm_width, device="meta") for n in (cache.get_seq_length(), 1))
    past = subject.language_model(row, visual=visual // rows)
    step = count_flops_by_part(lambda: subject.language_model(one, past), subject.parts)
    parameters = count_parameters_by_part(subject)
    weights, kept = sum(parameters.values()) * size, count_cache_elements(cache) * size
    read = (parameters[LLM] - count_separate_embedding(subject)) * size + kept
    return PrefillCounts(
        visual // rows, subject.query_tokens, text, parameters, found, sum(step.values()), weights, kept, read
    )


def count_prefill_flops(
    subject: CostSubject, pixels: PixelInputs, rows: int, visual: int, text: int, keep: int = 1
) -> tuple[dict[str, int], Cache]:
    """FLOPs by part, and the cache that a prefill leaves. `keep`: logits of so many last tokens, 0: all."""
    tokens, kept = visual + subject.query_tokens + text, []

    def whole() -> None:
        with torch.device("meta"):
            subject.encode_images(pixels, rows, tokens, text)
            embeds = torch.empty(rows, tokens, subject.llm_width)
            kept.append(subject.language_model(embeds, keep=keep, visual=visual))

    return count_flops_by_part(whole, subject.parts), kept[0]


def count_cell_prefill_flops(
    subject: CellSubject, text: int = TEXT_TOKENS, tiles: int | None = None, keep: int = 1
) -> dict[str, int]:
    """FLOPs by part of one row of a cell, with one image of as many crops as it can have; `tiles` a side,
    None: as in evaluation."""
    crops = subject.tiling.most_crops if tiles is None else Tiling(tiles).most_crops
    pixels = {"pixel_values": torch.empty(1, crops, 3, subject.size, subject.size, device="meta")}
    return count_prefill_flops(subject, pixels, 1, subject.count_visual_tokens(pixels), text, keep)[0]


def count_training_flops(
    subject: CellSubject, config: Config, stage: str, text: int, tiles: int, cached: bool
) -> int:
    """FLOPs of one row of a training step, forward and backward: three times the forward's for a part that is
    trained, twice for a frozen language model, which hands gradients on, once for a frozen tower, none where
    its features are cached. What gradient checkpointing computes again does not count."""
    names = dict(
        zip(MODEL_PARTS, ("vision_tower", "compressor", "projector", "query_module", "language_model"))
    )
    trained, total = choose_trainable_parts(stage, config.tower.train), 0
    for part, count in count_cell_prefill_flops(subject, text, tiles, keep=0).items():
        frozen = (0 if cached else 1) if part == TOWER else 2
        total += count * (3 if names.get(part) in trained else frozen)
    return total


def move_to_meta(pixels: PixelInputs) -> PixelInputs:
    """Without content, but for whole numbers: sizes, which a model reads."""
    return {name: value.to("meta") if value.is_floating_point() else value for name, value in pixels.items()}


def count_parameters_by_part(subject: CostSubject) -> dict[str, int]:
    """Each parameter once, a part within another as its own."""
    owner = dict.fromkeys(subject.model.parameters(), OTHER_PART)
    for name, modules in subject.parts.items():
        for module in modules:
            owner |= dict.fromkeys(module.parameters(), name)
    found = dict.fromkeys([*subject.parts, OTHER_PART], 0)
    for parameter, name in owner.items():
        found[name] += parameter.numel()
    return found


def list_cache_tensors(cache: Cache) -> list[Tensor]:
    """Keys and values of all layers."""
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def count_cache_elements(cache: Cache) -> int:
    """Numbers that a cache holds."""
    return sum(tensor.numel() for tensor in list_cache_tensors(cache))


def count_separate_embedding(subject: CostSubject) -> int:
    """Parameters of an input embedding of its own, of which a step reads a row."""
    embedding = subject.model.get_input_embeddings().weight
    return 0 if subject.model.get_output_embeddings().weight is embedding else embedding.numel()
