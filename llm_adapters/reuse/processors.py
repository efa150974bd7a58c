"""Processors whose placeholders follow a compressor, and that mark questions for a query module.

A processor's class is exchanged for a subclass of the same name that knows the new counts, so it is saved and
loaded as before; its tokenizer, where `<question>` and `<query>` are added, is a copy.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase
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
    counts: dict[str, Any]
    compressor: Compressor
    num_queries: int


# mypy cannot know a class that is made at run time: what these inherit is a processor of transformers
ProcessorBase: Any = object


class AttachedProcessor(ProcessorBase):
    """Stands before a processor's own class. `attached` is set on the instance."""

    attached: AttachedState
    kind: ClassVar[str] = "fixed"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_processor, (self.attached.plain, self.kind, dict(vars(self)))

    def __call__(self, images: Any = None, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.attached.num_queries and text:
            texts = [text] if isinstance(text, str) else text
            marked = []
            for number, one in enumerate(texts):
                marked.append(repeat_query_marker(one, number, self.attached.num_queries))
            text = marked[0] if isinstance(text, str) else marked
        return super().__call__(images, text, *args, **kwargs)

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
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
        pinpoints = self.image_processor.image_grid_pinpoints
        best_height, best_width = select_best_resolution((orig_height, orig_width), pinpoints)
        tiles = (best_height // height, best_width // width)
        if grid is None:
            count += count * tiles[0] * tiles[1]
        else:
            count += sum(self._get_unpadded_features(orig_height, orig_width, *grid, *tiles))
        # the caller takes the CLS token's away
        return count + (self.vision_feature_select_strategy == "default")


class GridProcessor(AttachedProcessor):
    """Qwen-VL's: an image has the patch grid that its size gives."""

    kind = "grid"

    def replace_image_token(
        self,
        image_inputs: dict[str, Any],
        image_idx: int,
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        frames, height, width = map(int, image_inputs["image_grid_thw"][image_idx])
        return self.image_token * (frames * self.attached.compressor.num_tokens(height, width))

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        data = super()._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None:
            images = self.image_processor
            patch = images.patch_size
            factor = patch * images.merge_size
            least, most = images.size["shortest_edge"], images.size["longest_edge"]
            data.num_image_tokens = []
            for height, width in image_sizes:
                height, width = smart_resize(height, width, factor, least, most)
                count = self.attached.compressor.num_tokens(height // patch, width // patch)
                data.num_image_tokens.append(count)
        return data


PROCESSORS_BY_KIND: dict[str, type] = {
    cls.kind: cls for cls in (AttachedProcessor, TiledProcessor, GridProcessor)
}


def _make_class(plain: type, kind: str) -> type:
    """A subclass of a processor's class, of the same name, so that it is saved as before."""
    return type(plain.__name__, (PROCESSORS_BY_KIND[kind], plain), {"__module__": plain.__module__})


def _rebuild_processor(plain: type, kind: str, state: dict[str, Any]) -> Any:
    """What unpickling and copying call: the class was made at run time."""
    processor: Any = object.__new__(_make_class(plain, kind))
    vars(processor).update(state)
    return processor


def attach_processor(
    processor: Any,
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
    processor.attached = attached
    processor.__class__ = _make_class(type(processor), kind)


def _set_counts(processor: Any, kind: str, compressor: Compressor, grid: tuple[int, int] | None) -> None:
    """The attributes that a processor of the kind `fixed` counts by; others ask the compressor."""
    if kind == "fixed":
        assert grid is not None  # all images of such a family have one
        vars(processor).update(compute_counts(processor, compressor.num_tokens(*grid), grid))


def copy_at_scale(processor: Any, scale: int) -> Compressor:
    """A processor's compressor at another scale, for `update_counts`. UsageError where there is none."""
    compressor = copy.deepcopy(_require_attached(processor, "pick").compressor)
    compressor.pick(scale)
    return compressor


def update_counts(processor: Any, compressor: Compressor, grid: tuple[int, int] | None) -> None:
    """Counts follow `compressor` from now on."""
    processor.attached = replace(processor.attached, compressor=compressor)
    _set_counts(processor, processor.kind, compressor, grid)


def _require_attached(processor: Any, action: str) -> AttachedState:
    """What `attach` has noted on a processor; UsageError where it has noted nothing."""
    attached = getattr(processor, "attached", None)
    if attached is None:
        raise UsageError(f"{action}: nothing is attached to this processor; give the one that `attach` got")
    return attached


def detach_processor(processor: Any) -> None:
    """The processor as it was before `attach`."""
    attached = _require_attached(processor, "detach")
    processor.__class__ = attached.plain
    processor.tokenizer = attached.tokenizer
    vars(processor).update(attached.counts)
    del processor.attached


def read_counts(processor: Any) -> dict[str, Any]:
    """The attributes that say how many placeholders an image has."""
    return {name: vars(processor)[name] for name in COUNT_ATTRIBUTES if name in vars(processor)}


def compute_counts(processor: Any, count: int, grid: tuple[int, int]) -> dict[str, Any]:
    """The same attributes for `count` tokens of each crop."""
    counts = read_counts(processor)
    for name, value in counts.items():
        if name == "num_additional_image_tokens":
            # the class adds the patch grid to it and takes the CLS token away
            cls_token = processor.vision_feature_select_strategy == "default"
            counts[name] = count - grid[0] * grid[1] + cls_token
        elif name == "full_image_sequence":
            token = processor.tokenizer.image_token
            counts[name] = value.replace(token * processor.image_seq_length, token * count)
        else:
            counts[name] = count
    return counts


def repeat_query_marker(text: str, number: int, num_queries: int) -> str:
    """`<query>` as often as there are query tokens. UsageError where markers are not one pair a turn."""
    markers = [piece for piece in _split_markers(text) if piece in (QUESTION, QUERY)]
    if not markers or markers != [QUESTION, QUERY] * (len(markers) // 2):
        raise UsageError(
            f"text {number} has {markers.count(QUESTION)} {QUESTION} and {markers.count(QUERY)} "
            f"{QUERY}: put one before and one after each question, in this order, or use "
            "apply_chat_template"
        )
    return text.replace(QUERY, QUERY * num_queries)


def _split_markers(text: str) -> list[str]:
    """Markers and what stands between them; a NUL is in no text that a tokenizer takes."""
    return text.replace(QUESTION, f"\0{QUESTION}\0").replace(QUERY, f"\0{QUERY}\0").split("\0")


def add_markers(conversation: list[Any]) -> list[Any]:
    """Markers in each user message that has text and none of them: before its first text, and at its end,
    where the query tokens have all of its images before them."""
    if conversation and isinstance(conversation[0], list):
        return [add_markers(one) for one in conversation]
    marked = []
    for message in conversation:
        if message["role"] == "user":
            message = _mark_message(message)
        marked.append(message)
    return marked


def _mark_message(message: dict[str, Any]) -> dict[str, Any]:
    """A user message with its markers; one without text, or that has them, as it is."""
    content = message["content"]
    parts = copy.copy(content)
    if isinstance(content, str):
        parts = [{"type": "text", "text": content}]
    texts = [i for i, part in enumerate(parts) if part["type"] == "text"]
    if not texts or any(QUERY in parts[i]["text"] for i in texts):
        return message
    parts[texts[0]] = {**parts[texts[0]], "text": QUESTION + parts[texts[0]]["text"]}
    if parts[-1]["type"] != "text":
        parts.append({"type": "text", "text": ""})
    parts[-1] = {**parts[-1], "text": parts[-1]["text"] + QUERY}
    if isinstance(content, str):
        return {**message, "content": parts[0]["text"]}
    return {**message, "content": parts}
