"""Processors whose placeholders follow a compressor, and that mark questions for a query module.

A processor's class is exchanged for a subclass of the same name that knows the new counts, so it is saved and
loaded as before; its tokenizer, where `<question>` and `<query>` are added, is a copy.
"""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import select_best_resolution
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.processing_utils import MultiModalData

from compressors.base import Compressor
from compressors.errors import UsageError
from llm_adapters.conversation import QUERY, QUESTION

COUNT_ATTRIBUTES = ("image_seq_length", "image_seq_len", "num_additional_image_tokens", "full_image_sequence")


@dataclass
class AttachedState:
    """A processor's class, tokenizer and counts before; the compressor, without its weights."""

    plain: type
    tokenizer: PreTrainedTokenizerBase
    counts: dict
    compressor: Compressor
    num_queries: int


class AttachedProcessor:
    """Stands before a processor's own class. `attached` is set on the instance."""

    attached: AttachedState
    kind: ClassVar[str] = "fixed"

    def __reduce__(self):
        return _rebuild_processor, (self.attached.plain, self.kind, dict(vars(self)))

    def __call__(self, images=None, text=None, *args, **kwargs):
        if self.attached.num_queries and text:
            texts = [text] if isinstance(text, str) else text
            texts = [repeat_query_marker(one, i, self.attached.num_queries) for i, one in enumerate(texts)]
            text = texts[0] if isinstance(text, str) else texts
        return super().__call__(images, text, *args, **kwargs)

    def apply_chat_template(self, conversation, *args, **kwargs):
        if self.attached.num_queries:
            conversation = add_markers(conversation)
        return super().apply_chat_template(conversation, *args, **kwargs)


class TiledProcessor(AttachedProcessor):
    """LLaVA-NeXT's: a thumbnail, and tiles that are one picture with a newline after each row of tokens."""

    kind = "tiles"

    def _get_number_of_features(self, orig_height: int, orig_width: int, height: int, width: int) -> int:
        size = (height // self.patch_size, width // self.patch_size)
        grid = self.attached.compressor.out_grid(*size)
        count = self.attached.compressor.num_tokens(*size)
        best = select_best_resolution([orig_height, orig_width], self.image_processor.image_grid_pinpoints)
        tiles = (best[0] // height, best[1] // width)
        if grid is None:
            count += count * tiles[0] * tiles[1]
        else:
            count += sum(self._get_unpadded_features(orig_height, orig_width, *grid, *tiles))
        # the caller takes the CLS token's away
        return count + (self.vision_feature_select_strategy == "default")


class GridProcessor(AttachedProcessor):
    """Qwen-VL's: an image has the patch grid that its size gives."""

    kind = "grid"

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:  # noqa: ARG002
        frames, height, width = map(int, image_inputs["image_grid_thw"][image_idx])
        return self.image_token * (frames * self.attached.compressor.num_tokens(height, width))

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        data = super()._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None:
            images, patch = self.image_processor, self.image_processor.patch_size
            limits = (images.size["shortest_edge"], images.size["longest_edge"])
            sizes = [smart_resize(*size, patch * images.merge_size, *limits) for size in image_sizes]
            data.num_image_tokens = [
                self.attached.compressor.num_tokens(h // patch, w // patch) for h, w in sizes
            ]
        return data


PROCESSORS_BY_KIND = {cls.kind: cls for cls in (AttachedProcessor, TiledProcessor, GridProcessor)}


def _make_class(plain: type, kind: str) -> type:
    return type(plain.__name__, (PROCESSORS_BY_KIND[kind], plain), {"__module__": plain.__module__})


def _rebuild_processor(plain: type, kind: str, state: dict) -> ProcessorMixin:
    processor = object.__new__(_make_class(plain, kind))
    vars(processor).update(state)
    return processor


def attach_processor(
    processor: ProcessorMixin,
    kind: str,
    compressor: Compressor,
    grid: tuple[int, int] | None,
    num_queries: int,
) -> None:
    """Counts follow `compressor`; `grid` is the patch grid where all images have one."""
    attached = AttachedState(
        type(processor),
        processor.tokenizer,
        read_counts(processor),
        copy.deepcopy(compressor).to("meta"),
        num_queries,
    )
    _set_counts(processor, kind, compressor, grid)
    if num_queries:
        processor.tokenizer = copy.deepcopy(processor.tokenizer)
        processor.tokenizer.add_tokens([QUESTION, QUERY], special_tokens=True)
    processor.attached, processor.__class__ = attached, _make_class(type(processor), kind)


def _set_counts(
    processor: ProcessorMixin, kind: str, compressor: Compressor, grid: tuple[int, int] | None
) -> None:
    if kind == "fixed":
        vars(processor).update(compute_counts(processor, compressor.num_tokens(*grid), grid))


def copy_at_scale(processor: ProcessorMixin, scale: int) -> Compressor:
    """A processor's compressor at another scale, for `recount`. UsageError where there is no such thing."""
    compressor = copy.deepcopy(_require_attached(processor, "pick").compressor)
    compressor.pick(scale)
    return compressor


def update_counts(processor: ProcessorMixin, compressor: Compressor, grid: tuple[int, int] | None) -> None:
    """Counts follow `compressor` from now on."""
    processor.attached = replace(processor.attached, compressor=compressor)
    _set_counts(processor, processor.kind, compressor, grid)


def _require_attached(processor: ProcessorMixin, asked: str) -> AttachedState:
    attached = getattr(processor, "attached", None)
    if attached is None:
        raise UsageError(f"{asked}: nothing is attached to this processor; give the one that `attach` got")
    return attached


def detach_processor(processor: ProcessorMixin) -> None:
    """The processor as it was before `attach`."""
    attached = _require_attached(processor, "detach")
    processor.__class__, processor.tokenizer = attached.plain, attached.tokenizer
    vars(processor).update(attached.counts)
    del processor.attached


def read_counts(processor: ProcessorMixin) -> dict:
    """The attributes that say how many placeholders an image has."""
    return {name: vars(processor)[name] for name in COUNT_ATTRIBUTES if name in vars(processor)}


def compute_counts(processor: ProcessorMixin, count: int, grid: tuple[int, int]) -> dict:
    """The same attributes for `count` tokens of each crop."""
    new = read_counts(processor)
    for name, value in new.items():
        if name == "num_additional_image_tokens":
            # the class adds the patch grid to it and takes the CLS token away
            cls_token = processor.vision_feature_select_strategy == "default"
            new[name] = count - grid[0] * grid[1] + cls_token
        elif name == "full_image_sequence":
            token = processor.tokenizer.image_token
            new[name] = value.replace(token * processor.image_seq_length, token * count)
        else:
            new[name] = count
    return new


def repeat_query_marker(text: str, number: int, num_queries: int) -> str:
    """`<query>` as often as there are query tokens. UsageError where markers are not one pair a turn."""
    found = [piece for piece in _split_markers(text) if piece in (QUESTION, QUERY)]
    if not found or found != [QUESTION, QUERY] * (len(found) // 2):
        raise UsageError(
            f"text {number} has {found.count(QUESTION)} {QUESTION} and {found.count(QUERY)} "
            f"{QUERY}: put one before and one after each question, in this order, or use "
            "apply_chat_template"
        )
    return text.replace(QUERY, QUERY * num_queries)


def _split_markers(text: str) -> list[str]:
    return text.replace(QUESTION, f"\0{QUESTION}\0").replace(QUERY, f"\0{QUERY}\0").split("\0")


def add_markers(conversation: list) -> list:
    """Markers in each user message that has text and none of them: before its first text, and at its end,
    where the query tokens have all of its images before them."""
    if conversation and isinstance(conversation[0], list):
        return [add_markers(one) for one in conversation]
    return [_mark_message(message) if message["role"] == "user" else message for message in conversation]


def _mark_message(message: dict) -> dict:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else copy.copy(content)
    texts = [i for i, part in enumerate(parts) if part["type"] == "text"]
    if not texts or any(QUERY in parts[i]["text"] for i in texts):
        return message
    parts[texts[0]] = {**parts[texts[0]], "text": QUESTION + parts[texts[0]]["text"]}
    if parts[-1]["type"] != "text":
        parts.append({"type": "text", "text": ""})
    parts[-1] = {**parts[-1], "text": parts[-1]["text"] + QUERY}
    return {**message, "content": parts[0]["text"] if isinstance(content, str) else parts}
