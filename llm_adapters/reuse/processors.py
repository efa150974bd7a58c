"""Processors whose placeholders follow a compressor, and that mark questions for a query module.

A processor's class is exchanged for a subclass of the same name that knows the new counts, so it is saved and
loaded as before; its tokenizer, where `<question>` and `<query>` are added, is a copy.
"""

import copy
import json
from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

from transformers import ProcessorMixin

from compressors.base import Compressor
from compressors.errors import UsageError
from llm_adapters.conversation import QUERY, QUESTION
from llm_adapters.reuse.counting import PROCESSORS_BY_KIND
from llm_adapters.reuse.counting.attached import AttachedProcessor, AttachedState, make_class

# where processors keep how many placeholders an image has; each family has one or two of these
COUNT_ATTRIBUTES = (
    "image_seq_length",
    "image_seq_len",
    "num_image_tokens",
    "num_additional_image_tokens",
    "full_image_sequence",
)


def attach_processor(
    processor: ProcessorMixin,
    kind: str,
    compressor: Compressor,
    grid: tuple[int, int] | None,
    patch_size: tuple[int, int] | None,
    num_queries: int,
    pair: str,
    own_rate: int,
    record: dict[str, Any],
) -> None:
    """Counts follow `compressor`, and `record` of what is attached is saved beside the processor.

    grid, patch_size      the patch grid where all images, or crops, have one; otherwise pixels of a patch
    own_rate  by how much, by side, the model's own reduction makes it smaller
    """
    attached_processor = cast(AttachedProcessor, processor)  # which it is at the end
    attached = AttachedState(
        plain=type(processor),
        tokenizer=attached_processor.tokenizer,
        counts=read_counts(processor),
        compressor=copy.deepcopy(compressor).to("meta"),
        num_queries=num_queries,
        pair=pair,
        grid=grid,
        patch_size=patch_size,
        own_rate=own_rate,
        record=record,
    )
    counter = PROCESSORS_BY_KIND[kind]
    if counter.sets_counts:
        _set_counts(processor, compressor, grid)
    if num_queries:
        tokenizer = copy.deepcopy(attached.tokenizer)
        tokenizer.add_tokens([QUESTION, QUERY], special_tokens=True)
        attached_processor.tokenizer = tokenizer
    attached_processor.attached = attached
    attached_processor.__class__ = make_class(counter, attached.plain)


def _set_counts(processor: ProcessorMixin, compressor: Compressor, grid: tuple[int, int] | None) -> None:
    """The attributes that a processor counts by."""
    assert grid is not None  # all images of such a family have one
    vars(processor).update(compute_counts(processor, compressor.num_tokens(*grid), grid))


def copy_at_scale(processor: ProcessorMixin, scale: int) -> Compressor:
    """A processor's compressor at another scale, for `update_counts`. UsageError where there is none."""
    attached_processor = _require_attached(processor, "pick")
    compressor = copy.deepcopy(attached_processor.attached.compressor)
    compressor.pick(scale)
    return compressor


def update_counts(
    processor: ProcessorMixin, compressor: Compressor, grid: tuple[int, int] | None, scale: int
) -> None:
    """Counts follow `compressor`, which is at that scale, from now on."""
    attached_processor = _require_attached(processor, "pick")
    attached_processor.attached = replace(
        attached_processor.attached,
        compressor=compressor,
        record={**attached_processor.attached.record, "scale": scale},
    )
    if attached_processor.sets_counts:
        _set_counts(processor, compressor, grid)


def _require_attached(processor: ProcessorMixin, action: str) -> AttachedProcessor:
    """The processor itself, which `attach` has got; UsageError for another."""
    if getattr(processor, "attached", None) is None:
        raise UsageError(f"{action}: nothing is attached to this processor; give the one that `attach` got")
    return cast(AttachedProcessor, processor)


def check_pair(processor: ProcessorMixin, pair: str, action: str) -> None:
    """UsageError for a processor that `attach` or `load` did not give with this model."""
    if _require_attached(processor, action).attached.pair != pair:
        raise UsageError(
            f"{action}: the processor belongs to another model; give the one that was attached with it"
        )


def detach_processor(processor: ProcessorMixin) -> None:
    """The processor as it was before `attach`."""
    attached_processor = _require_attached(processor, "detach")
    attached = attached_processor.attached
    attached_processor.__class__ = attached.plain
    attached_processor.tokenizer = attached.tokenizer
    vars(processor).update(attached.counts)
    del attached_processor.attached


def list_new_markers(processor: ProcessorMixin) -> list[str]:
    """The markers of questions that a processor's tokenizer does not have as added tokens."""
    tokenizer = cast(AttachedProcessor, processor).tokenizer  # which all have
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    return [marker for marker in (QUESTION, QUERY) if marker not in added]


def remove_markers(tokenizer: Any, markers: Collection[str]) -> None:
    """A tokenizer as it was before these were added to it. Where that would move the ids of tokens that were
    added behind them, and in a tokenizer written in Python, they stay."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not markers:
        return
    state = json.loads(backend.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in markers]
    without = type(backend).from_str(json.dumps(state))
    ids = backend.get_vocab()
    if all(ids[token] == number for token, number in without.get_vocab().items()):
        tokenizer._tokenizer = without


def read_counts(processor: ProcessorMixin) -> dict[str, Any]:
    """The attributes that say how many placeholders an image has."""
    attributes = vars(processor)
    return {name: attributes[name] for name in COUNT_ATTRIBUTES if name in attributes}


def compute_counts(processor: Any, count: int, grid: tuple[int, int]) -> dict[str, Any]:
    """The same attributes for `count` tokens of each crop, whose patches have this grid."""
    counts = read_counts(processor)
    for name, value in counts.items():
        if name == "num_additional_image_tokens":
            # the class adds the patch grid to it and takes the CLS token away
            cls_token = processor.vision_feature_select_strategy == "default"
            counts[name] = count - grid[0] * grid[1] + cls_token
        elif name == "full_image_sequence":
            # a text with all placeholders of an image in a row
            token = processor.tokenizer.image_token
            placeholders = token * processor.image_seq_length
            counts[name] = value.replace(placeholders, token * count)
        else:
            counts[name] = count
    return counts
