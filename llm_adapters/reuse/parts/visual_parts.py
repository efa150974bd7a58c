"""What `attach` puts into a model: a compressor where the model's own reduction is, and EmbQ in its LLM.

pixels -> tower -> patch maps (n, H, W, C) -> compressor -> projector -> placeholders -> LLM
                        +------------ the same maps ---------------> query module, in the LLM
"""

from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressors.base import Compressor
from connectors.query_module import QueryModule
from llm_adapters.adapter import QueryAdapter
from llm_adapters.kept_turns import says_guessed
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.parts.cues import CueReader, find_block_number
from llm_adapters.reuse.parts.embedding import MarkerAdapter
from llm_adapters.reuse.parts.inputs import InputAdapter
from llm_adapters.reuse.parts.markers import Markers
from llm_adapters.reuse.parts.positions import GridPositionKeeper, PositionKeeper
from llm_adapters.reuse.parts.raw import RawInstead, RawLevel
from llm_adapters.reuse.questions import QuestionReader
from llm_adapters.reuse.saving import find_base_folder, save_with_card
from llm_adapters.reuse.wrapping import (
    Args,
    Kwargs,
    Wrapping,
    bind_arguments,
    copy_attached,
    hold_encoding,
    repeat_outputs,
)

# by which `generate` encodes images; not there in older transformers and in models without their head
GENERATION_ENCODER = "_maybe_prepare_encoder_kwargs_for_generation"
# by which it repeats what is encoded for beams; not there either
BEAM_REPEATER = "_expand_multimodal_outputs"
# by which it makes what guesses words ahead, and what changes the scores of words
GUESSER = "_get_candidate_generator"
SCORE_CHANGER = "_get_logits_processor"


class VisualParts(InputAdapter, MarkerAdapter, QueryAdapter):
    """Compressor, projector and those of DeepStack's levels (None: the model's own), and query module (or
    None) of the model they sit in."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: ModelFamily,
        compressor: Compressor,
        projector: nn.Module | None,
        level_projectors: nn.ModuleList | None,
        cue_reader: CueReader,
        position_keeper: PositionKeeper | GridPositionKeeper | None,
        query_module: QueryModule | None,
        markers: Markers | None,
        pair: str,
        question_reader: QuestionReader | None = None,
    ):
        super().__init__()
        self.family = family
        self.compressor = compressor
        self.projector = projector
        self.level_projectors = level_projectors
        self.cue_reader = cue_reader
        self.position_keeper = position_keeper
        self.query_module = query_module
        self.markers = markers
        self.question_reader = question_reader
        self.pair = pair  # with its processor, which has the same
        # in a tuple: a model is no part of its part. The cast: transformers' type of `base_model` is too wide
        self._outside = (cast(PreTrainedModel, model.base_model), model)
        self._wrapping = Wrapping()
        # hidden states of the tower by level while images are encoded (0: its output, where a family says
        # which module gives it), None at other times
        self._raw: dict[int, Tensor] | None = None
        self._thread = 0  # in which they are encoded
        self._tower_dtype: torch.dtype | None = None  # of patches, where cues have widened what holds both
        self._warned = False  # that PEFT has frozen these parts
        self._kept: Tensor | None = None  # raw features, where the model does not let them through
        self._places: dict[int, Tensor] = {}  # of the patches (n, N) that each map keeps
        self._levels: dict[int, int] = {}  # what the compressor calls a level -> the block that gives it
        # pixel values, and what was made of them: the model asks for it a second time
        self._encoded: list[tuple[Tensor, Any]] = []
        self._begun = False  # a step of a training, for what is encoded in a forward

    def __deepcopy__(self, memo: dict[int, Any]) -> "VisualParts":
        copied: VisualParts = copy_attached(self, *self._outside, memo)
        return copied

    def insert_parts(self) -> None:
        """Wrap the model's methods and register the hooks."""
        base, model = self._outside
        wrap = self._wrapping.wrap_method
        handles = self._wrapping.handles
        modules = dict(base.named_modules())
        for path, raw in self.family.raw.items():
            module = modules.get(path)
            if module is not None:
                wrap(module, "forward", RawInstead(self, module, raw))
            else:  # a method of the base
                wrap(base, path, RawInstead(self, base, raw))
        self._wrap_deepstack(base)
        wrap(base, "get_image_features", self._image_features)
        self.wrap_videos()
        save = partial(save_with_card, model, self.family.keeps_names, find_base_folder(model))
        wrap(model, "save_pretrained", save)
        if self.family.rope:
            wrap(base, "get_rope_index", self._rope_index)
        handles.append(base.register_forward_pre_hook(self._encode_inputs, with_kwargs=True))
        handles.append(base.register_forward_hook(self._touch_unused_parts, with_kwargs=True))
        self._hook_levels(base.get_submodule(self.family.tower))
        if self.family.features is not None:
            features: Any = base.get_submodule(self.family.features)
            features.visual_level = 0
            handles.append(features.register_forward_hook(self._record_level))
        if self.question_reader is not None and hasattr(model, GENERATION_ENCODER):
            wrap(model, GENERATION_ENCODER, self.question_reader.encode_noting_prompt)
        if self.family.mixes_beams and hasattr(model, BEAM_REPEATER):
            wrap(model, BEAM_REPEATER, partial(repeat_outputs, model))
        if hasattr(model, "generate"):  # a model without its head has none
            wrap(model, "prepare_inputs_for_generation", says_guessed)
        if isinstance(self.position_keeper, PositionKeeper):
            wrap(model, "prepare_inputs_for_generation", self.position_keeper.continue_positions)
        if self.query_module is not None:
            wrap(base.get_input_embeddings(), "forward", self._embed_markers)
            self._wrap_id_tables(modules)
            if hasattr(model, "generate"):
                wrap(model, GUESSER, self._forbid_guessed_markers)
                wrap(model, SCORE_CHANGER, self._score_markers)
            handles.append(model.register_forward_pre_hook(self._prepare_forward, with_kwargs=True))
            handles += self.hook_query_module(getattr(base, self.family.language_model))
            handles.append(base.register_forward_hook(self._check_context_read, with_kwargs=True))

    def remove_parts(self) -> None:
        """Undo `insert_parts`."""
        base, model = self._outside
        self._wrapping.unwrap_all(model)
        for module in base.modules():
            vars(module).pop("visual_level", None)

    def _wrap_deepstack(self, base: PreTrainedModel) -> None:
        """Patch features instead of the outputs of DeepStack's mergers while images are encoded."""
        deepstack = self.family.deepstack
        if deepstack is None:
            return
        for merger in base.get_submodule(deepstack.mergers).children():
            self._wrapping.wrap_method(merger, "forward", RawLevel(self, merger, deepstack.raw))

    def _hook_levels(self, tower: nn.Module) -> None:
        """Record the hidden states that the compressor needs. UsageError for a level that the tower lacks."""
        if not self.compressor.needs_levels:
            return
        blocks = self.family.blocks(tower)
        for level in self.compressor.needs_levels:
            index = find_block_number(level, len(blocks), f"level {level}")
            block: Any = blocks[index - 1]
            block.visual_level = index  # an attribute, so that copies keep it
            self._wrapping.handles.append(block.register_forward_hook(self._record_level))
            self._levels[level] = index

    def _record_level(self, block: Any, args: Args, output: Any) -> None:  # noqa: ARG002
        """The hook of a block whose output the compressor needs."""
        if self._raw is not None:
            self._raw[block.visual_level] = output[0] if isinstance(output, tuple) else output

    @property
    def is_encoding(self) -> bool:
        """Whether images are encoded in this thread: another may run other parts of the model meanwhile."""
        return self._raw is not None and self._thread == get_ident()

    def _image_features(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model's `get_image_features`: visual tokens in `pooler_output`, and `images` beside it."""
        with hold_encoding():
            if self.is_encoding:  # `get_video_features` of many families has called it
                return original(*args, **{**kwargs, "return_dict": True})
            return self.encode_visuals(original, args, kwargs, bind_arguments(original, args, kwargs))

    def encode_visuals(
        self, original: Callable[..., Any], args: Args, kwargs: Kwargs, arguments: Kwargs
    ) -> Any:
        """What a model's method makes of `args` and `kwargs`, with visual tokens in it; `arguments` are these
        by the names that images have."""
        for number, (pixels, encoded) in enumerate(self._encoded):
            if arguments["pixel_values"] is pixels:
                del self._encoded[number]
                return encoded
        self.cue_reader.check_layer(arguments.get("vision_feature_layer"))
        base, _ = self._outside
        self._raw = {}
        self._thread = get_ident()
        self.grids = arguments.get("image_grid_thw")
        try:
            with self.cue_reader.record(base):
                output = original(*args, **{**kwargs, "return_dict": True})
        finally:
            self._raw = None
        self._compress_output(output, arguments)
        return output
