"""Answers to several questions about one picture: what stands before the first word of a question (system
text and visual tokens) is the same for all of them, and goes through tower, compressor and LLM once.

The rows that ask about a picture begin with copies of its part of the KV cache. Query tokens stand behind
their question, and read the picture's uncompressed features as ever.
"""

import copy
import inspect
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from compressors.base import Compressor
from connectors.versions import CACHE, read_cache
from llm_adapters.conversation import Encoded
from llm_adapters.kv_cache import StaticCaches, fill_cache, multiplies_rows
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor

# Visual tokens of an image from which on questions share its part of the prompt. At `tiny` an evaluation
# took 0.42 times as long with 144 tokens and 1.1 times with 16, where a second forward pass is not worth it.
LEAST_SHARED_TOKENS = 64


@dataclass
class SharedBatch:
    """Rows of questions about fewer pictures than rows.

    prefix    inputs of the model, a row a picture: all that comes before its questions, P tokens, and images
    rows      inputs of the model, a row a question, whole: the same P tokens, padding, the question
    picture   (B,) which row of `prefix` a row begins with
    """

    prefix: dict[str, Tensor]
    rows: dict[str, Tensor]
    picture: Tensor


def move_inputs(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Inputs where a model is, without waiting for the copies."""
    return {name: value.to(device, non_blocking=True) for name, value in inputs.items()}


def can_share_prefix(model: FlashSlothForConditionalGeneration) -> bool:
    """Whether a picture's tokens are the same whatever is asked, and the cache can be copied. Not where
    compressor or pruner reads the question, the compressor leaves tokens empty or out, or a query module
    reads the visual tokens beside the question, which stand behind the cache then. Not where a layer keeps a
    state in place of keys and values, or sees a window, nor where the LLM takes no positions (MPT): padding
    stands between prefix and question, and a window counts it, as ALiBi counts columns."""
    compressor = model.compressor
    if (
        compressor.reads_question
        or compressor.varies
        or type(compressor).visible is not Compressor.visible
        or model.pruner is not None
        or (model.query_module is not None and model.query_module.prefuses)
    ):
        return False
    if model.language_model._is_stateful:
        return False
    if "position_ids" not in inspect.signature(model.language_model.forward).parameters:
        return False
    layers = DynamicCache(config=model.config.get_text_config()).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def find_prefix_length(rows: Sequence[Encoded], image_token_id: int) -> int:
    """Tokens up to the last visual one, if they are as many in all rows and no words of a question are among
    them; else 0."""
    lengths = set()
    for row in rows:
        if image_token_id not in row.ids:
            return 0
        length = len(row.ids) - row.ids[::-1].index(image_token_id)
        lengths.add(length)
        for token, turn in zip(row.ids[:length], row.turns):
            if turn and token != image_token_id:
                return 0
    return lengths.pop() if len(lengths) == 1 else 0


def slice_row(row: Encoded, start: int, end: int) -> Encoded:
    """Tokens of a row from `start` to before `end`; the images are with the first ones."""
    image_turns = [] if start else row.image_turns
    return Encoded(row.ids[start:end], row.labels[start:end], row.turns[start:end], image_turns)


def group_rows(
    rows: Sequence[Encoded], pictures: Sequence[Hashable], length: int
) -> tuple[list[int], list[int]]:
    """The first row of each prefix, and the prefix of each row. `pictures`: what tells a row's images from
    others."""
    numbers: dict[tuple[Hashable, ...], int] = {}  # of prefixes, by what is in them
    first_rows: list[int] = []
    picture: list[int] = []
    for number, (row, images) in enumerate(zip(rows, pictures)):
        key = (images, tuple(row.ids[:length]))
        if key not in numbers:
            numbers[key] = len(numbers)
            first_rows.append(number)
        picture.append(numbers[key])
    return first_rows, picture


def join_rows(
    processor: FlashSlothProcessor,
    prefix: dict[str, Tensor],
    rows: Sequence[Encoded],
    picture: Sequence[int],
    length: int,
) -> SharedBatch:
    """Rows behind the inputs of their prefixes, padded between the two."""
    ends = [slice_row(row, length, len(row.ids)) for row in rows]
    picture_of_row = torch.tensor(picture)
    ends_batch = processor.collate(ends, "left")
    whole_rows = {}
    for name in ("input_ids", "attention_mask", "turns"):
        whole_rows[name] = torch.cat([prefix[name][picture_of_row], ends_batch[name]], dim=1)
    query_index = ends_batch["query_index"]
    whole_rows["query_index"] = torch.where(query_index < 0, query_index, query_index + length)
    return SharedBatch(prefix, whole_rows, picture_of_row)


def share_inputs(
    processor: FlashSlothProcessor, inputs: Mapping[str, Tensor], pictures: Sequence[Hashable]
) -> SharedBatch | None:
    """Inputs of the processor, a row a question, as rows behind their prefixes. `pictures`: as in
    `group_rows`. None where words of a question stand before an image, or prefixes differ in length."""
    if "image_turn" not in inputs:
        return None
    rows: list[Encoded] = []
    for ids, mask, turns in zip(inputs["input_ids"], inputs["attention_mask"], inputs["turns"]):
        there = mask.bool()
        row_ids = ids[there].tolist()
        rows.append(Encoded(row_ids, row_ids, turns[there].tolist(), []))
    length = find_prefix_length(rows, processor.image_token_id)
    if not length:
        return None
    first_rows, picture = group_rows(rows, pictures, length)
    prefix = processor.collate([slice_row(rows[number], 0, length) for number in first_rows], "left")
    del prefix["labels"]
    prefix["image_turn"] = inputs["image_turn"][first_rows].cpu()
    prefix["pixel_values"] = inputs["pixel_values"][first_rows]
    return join_rows(processor, prefix, rows, picture, length)


@dataclass
class ComputedPrefix:
    """What the rows of a batch begin with: a row a picture, and P tokens.

    cache       keys and values of the LLM
    features    (pictures, I, H, W, C) of the tower
    image_turn  (pictures, I)
    length      P
    """

    cache: Any
    features: Tensor
    image_turn: Tensor
    length: int


@torch.inference_mode()
def compute_prefix(model: FlashSlothForConditionalGeneration, inputs: Mapping[str, Tensor]) -> ComputedPrefix:
    """Tower, compressor and LLM of the pictures and the words before them."""
    prefix: dict[str, Any] = move_inputs(inputs, model.device)
    if "pixel_values" in prefix:
        prefix["vision_features"] = model.get_image_features(prefix.pop("pixel_values"))
    # a prefix has no query tokens
    output = model(**prefix, use_cache=True, logits_to_keep=1)
    length = prefix["input_ids"].shape[1]
    return ComputedPrefix(read_cache(output), prefix["vision_features"], prefix["image_turn"], length)


@torch.inference_mode()
def generate_behind_prefix(
    model: FlashSlothForConditionalGeneration,
    batch: SharedBatch,
    computed: ComputedPrefix | None = None,
    caches: StaticCaches | None = None,
    **options: Any,
) -> Tensor:
    """(B, P + question + answer) token ids, as `generate` gives them for `batch.rows` with their own images;
    `options` are those of `generate`. `computed`: what `compute_prefix` gave for `batch.prefix`, kept as it
    is; None: it is computed. `caches`: where the cache of the rows comes from, with `max_new_tokens` among
    the options; None: the prefix's own grows."""
    rows: dict[str, Any] = move_inputs(batch.rows, model.device)
    picture = batch.picture.to(model.device, non_blocking=True)
    is_kept = computed is not None
    if computed is None:
        computed = compute_prefix(model, batch.prefix)
    if caches is not None:
        count, length = rows["input_ids"].shape
        cache = caches.lend_cache(count, length + options["max_new_tokens"])
        fill_cache(cache, computed.cache, picture)
    else:
        cache = copy.deepcopy(computed.cache) if is_kept else computed.cache  # generation adds to it
        cache.batch_select_indices(picture)
    rows[CACHE] = cache
    ids: Tensor = model.generate(
        **rows,
        vision_features=computed.features[picture],
        image_turn=computed.image_turn[picture],
        prefix_length=computed.length,
        use_cache=True,  # whatever the configuration says: there is a cache
        **options,
    )
    return ids


class PictureKeeper:
    """Generates answers behind shared prefixes, and keeps the last one: the next question about the same
    picture finds it."""

    def __init__(
        self,
        model: FlashSlothForConditionalGeneration,
        processor: FlashSlothProcessor,
        caches: StaticCaches | None = None,
    ):
        """`caches`: as `generate_behind_prefix` takes them."""
        self.model = model
        self.processor = processor
        self.caches = caches
        self.key: tuple[Hashable, ...] | None = None
        self.computed: ComputedPrefix | None = None

    def generate(self, inputs: Mapping[str, Tensor], pictures: Sequence[Hashable], **options: Any) -> Tensor:
        """Tokens (B, T) of the answers to inputs of the processor, padded on the left; `pictures`: what tells
        a row's images from others; `options`: of `generate`. Nothing is shared where the model's prefixes
        depend on the question, where a row becomes several (beams), or if all pictures differ."""
        shared = None
        if not multiplies_rows(self.model, options) and can_share_prefix(self.model):
            shared = share_inputs(self.processor, inputs, pictures)
        ids: Tensor
        if shared is None or 1 < len(shared.prefix["input_ids"]) == len(pictures):
            arguments: dict[str, Any] = {**inputs, **options}
            with torch.inference_mode():
                if self.caches is not None:
                    arguments |= self.caches.lend_options(inputs["input_ids"], options)
                ids = self.model.generate(**arguments)
            return ids[:, inputs["input_ids"].shape[1] :]
        kept = self.compute_kept(shared, pictures[0])
        ids = generate_behind_prefix(self.model, shared, kept, self.caches, **options)
        return ids[:, shared.rows["input_ids"].shape[1] :]

    def compute_kept(self, shared: SharedBatch, picture: Hashable) -> ComputedPrefix | None:
        """The prefix of rows that all ask about one picture, kept for the next ones; None for several."""
        prefix_ids = shared.prefix["input_ids"]
        if len(prefix_ids) > 1:
            return None
        key = (picture, *prefix_ids[0].tolist())
        if key != self.key:
            self.computed = compute_prefix(self.model, shared.prefix)
            self.key = key
        return self.computed
