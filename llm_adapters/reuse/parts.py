"""What `attach` puts into a model: a compressor where the model's own reduction is, and EmbQ in its LLM.

pixels -> tower -> patch maps (n, H, W, C) -> compressor -> projector -> placeholders -> LLM
                        +------------ the same maps ---------------> query module, in the LLM
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from threading import get_ident
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressors.base import Compressor
from compressors.errors import UsageError
from compressors.selection import SubsetCompressor
from connectors.query_module import QueryModule
from connectors.versions import read_cache
from llm_adapters.adapter import CONTEXT, QueryAdapter, llm_sizes
from llm_adapters.conversation import IGNORE
from llm_adapters.kept_positions import compress_with_places
from llm_adapters.kept_turns import GUESSED, check_turn, says_guessed
from llm_adapters.reuse.cues import CueReader, find_block_number
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.families.family import read_merge_size
from llm_adapters.reuse.markers import EncodedImages, Markers
from llm_adapters.reuse.positions import (
    IMAGE_TYPE,
    GridPositionKeeper,
    KeptPatches,
    PositionKeeper,
    shrink_grids,
)
from llm_adapters.reuse.questions import QuestionReader
from llm_adapters.reuse.raw import RawInstead, RawLevel
from llm_adapters.reuse.saving import save_with_card
from llm_adapters.reuse.videos import (
    VideoAdapter,
    check_tellable,
    merge_images,
    merge_kept,
    refuse_videos,
)
from llm_adapters.reuse.wrapping import (
    ENCODING,
    VIDEO_TYPE,
    Args,
    HookResult,
    ImageEncoder,
    Kwargs,
    Wrapping,
    bind_arguments,
    call_with_known_names,
    check_count,
    check_placeholders,
    encode_pixels,
    repeat_outputs,
    split_placeholders,
)

# the attribute of the model that holds the parts, and their prefix in its state dict
PARTS_ATTRIBUTE = "slothkit"
# what `get_rope_index` calls the grids of a kind, and the type of its placeholders
GRID_TYPES = {"image_grid_thw": ("image", IMAGE_TYPE), "video_grid_thw": ("video", VIDEO_TYPE)}
MapQuestions = tuple[Tensor, Tensor]  # of a map's crops (n, M, E), and which words or pieces there are (n, M)
# by which `generate` encodes images; not there in older transformers and in models without their head
GENERATION_ENCODER = "_maybe_prepare_encoder_kwargs_for_generation"
# by which it repeats what is encoded for beams; not there either
BEAM_REPEATER = "_expand_multimodal_outputs"


class VisualParts(nn.Module, VideoAdapter, QueryAdapter):
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
        self._warned = False  # that PEFT has frozen these parts
        self._kept: Tensor | None = None  # raw features, where the model does not let them through
        self._places: dict[int, Tensor] = {}  # of the patches (n, N) that each map keeps
        self._levels: dict[int, int] = {}  # what the compressor calls a level -> the block that gives it
        # pixel values, and what was made of them: the model asks for it a second time
        self._encoded: list[tuple[Tensor, Any]] = []
        self._begun = False  # a step of a training, for what is encoded in a forward

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
        wrap(model, "save_pretrained", partial(save_with_card, model, self.family.keeps_names))
        if self.family.rope:
            wrap(base, "get_rope_index", self._rope_index)
        handles.append(base.register_forward_pre_hook(self._encode_inputs, with_kwargs=True))
        self._hook_levels(base.get_submodule(self.family.tower))
        if self.family.features is not None:
            features: Any = base.get_submodule(self.family.features)
            features.visual_level = 0
            handles.append(features.register_forward_hook(self._record_level))
        if self.question_reader is not None and hasattr(model, GENERATION_ENCODER):
            wrap(model, GENERATION_ENCODER, self.question_reader.encode_noting_prompt)
        if self.family.mixes_beams and hasattr(model, BEAM_REPEATER):
            wrap(model, BEAM_REPEATER, partial(repeat_outputs, model))
        if isinstance(self.position_keeper, PositionKeeper):
            wrap(model, "prepare_inputs_for_generation", self.position_keeper.continue_positions)
        if self.query_module is not None:
            wrap(base.get_input_embeddings(), "forward", self._embed_markers)
            self._wrap_id_tables(modules)
            wrap(model, "prepare_inputs_for_generation", says_guessed)
            handles.append(model.register_forward_pre_hook(self._prepare_forward, with_kwargs=True))
            handles += self.hook_query_module(getattr(base, self.family.language_model))
            handles.append(base.register_forward_hook(self._check_context_read, with_kwargs=True))

    def remove_parts(self) -> None:
        """Undo `insert_parts`."""
        self._wrapping.unwrap_all()
        for module in self._outside[0].modules():
            for name in ("query_insertion", "visual_level"):
                vars(module).pop(name, None)

    def _wrap_deepstack(self, base: PreTrainedModel) -> None:
        """Patch features instead of the outputs of DeepStack's mergers while images are encoded."""
        deepstack = self.family.deepstack
        if deepstack is None:
            return
        for merger in base.get_submodule(deepstack.mergers).children():
            self._wrapping.wrap_method(merger, "forward", RawLevel(self, merger, deepstack.raw))

    def _wrap_id_tables(self, modules: dict[str, nn.Module]) -> None:
        """What looks ids up beside the embeddings has no rows for the markers either."""
        table = modules.get(self.family.per_layer_table or "")
        if self.family.per_layer_table is not None and table is not None:  # some sizes have none
            self._wrapping.wrap_method(table, "forward", self._hide_markers)
        for path in self.family.id_embedders:
            embedder = modules[path]
            self._wrapping.wrap_method(embedder, "forward", partial(self._embed_markers_beyond, embedder))

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
        with ENCODING:
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
        self._raw = {}
        self._thread = get_ident()
        self.grids = arguments.get("image_grid_thw")
        try:
            with self.cue_reader.record():
                output = original(*args, **{**kwargs, "return_dict": True})
        finally:
            self._raw = None
        self._compress_output(output, arguments)
        return output

    def _compress_output(self, output: Any, arguments: Kwargs) -> None:
        """Visual tokens in the place of the patch features in `pooler_output`; `arguments` encoded them."""
        base, _ = self._outside
        if self.compressor.training and not self._begun:
            self.compressor.begin_step()
        kind = self.encoded_kind
        raw = output.pooler_output
        if kind.keeps_raw:
            assert self._kept is not None  # the projector has run
            raw, self._kept = self._kept, None
            if self.encodes_videos:
                raw = raw.unflatten(0, arguments["pixel_values"].shape[:2])
        entries = raw
        if isinstance(kind, ModelFamily):
            entries = kind.split(base, raw, arguments)
        maps = []
        for index, entry in enumerate(entries):
            maps.append(kind.maps(base, entry, arguments, index))
        texts = self._embed_questions(maps, arguments)
        tokens = self._compress_maps(maps, self.project_tokens, texts)
        packed = self._pack_tokens(tokens, maps, arguments)
        if self.position_keeper is not None:
            # an item, as below: accelerate's hooks hand on a copy of the output's items
            output["kept"] = self._collect_kept(maps)
        if isinstance(output.pooler_output, Tensor):  # as the model's own: where all images have one size
            output.pooler_output = torch.stack(packed)
        else:
            output.pooler_output = packed
        tower_dim = self.family.dim(base)
        if self.family.deepstack is not None:
            levels = [m[..., tower_dim:] for m in maps]  # for the compressor
            output.deepstack_features = self._compress_deepstack(
                output.deepstack_features, levels, texts, arguments
            )
        self._places = {}
        if self.query_module is not None:
            output["images"] = self._collect_images([m[..., :tower_dim] for m in maps], packed)

    def _pack_tokens(self, tokens: list[Tensor], maps: list[Tensor], arguments: Kwargs) -> list[Tensor]:
        """Tokens (n_i, N_i, D) of maps -> what fills the placeholders of each entry, (T_i, D)."""
        base, _ = self._outside
        packed = []
        for index, entry_tokens in enumerate(tokens):
            height, width = maps[index].shape[1:3]
            grid = self.compressor.out_grid(height, width)
            packed.append(self.encoded_kind.pack(base, entry_tokens, arguments, index, grid))
        return packed

    def _compress_deepstack(
        self,
        features: Sequence[Sequence[Tensor]],
        levels: list[Tensor],
        texts: list[MapQuestions],
        arguments: Kwargs,
    ) -> list[list[Tensor]]:
        """DeepStack's features, a list of the entries' a level, as the visual tokens themselves: by the same
        compressor, so that both have one place for each token; of one that keeps patches as they are, those
        of the patches that the tokens are. `levels` (n_i, H_i, W_i, C'): what comes beside them in the
        channels."""
        base, _ = self._outside
        compressed = []
        for number, entries in enumerate(features):
            maps = []
            for index, entry in enumerate(entries):
                level_map = self.encoded_kind.maps(base, entry, arguments, index)
                maps.append(torch.cat([level_map, levels[index]], -1))
            project = partial(self._project_level, number)
            if self._shares_choice:
                tokens = self._take_kept(maps, project)
            else:
                tokens = self._compress_maps(maps, project, texts)
            compressed.append(self._pack_tokens(tokens, maps, arguments))
        return compressed

    @property
    def _shares_choice(self) -> bool:
        """Whether DeepStack's features have no choice of their own."""
        return self.family.deepstack is not None and isinstance(self.compressor, SubsetCompressor)

    def _take_kept(self, maps: list[Tensor], project: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Maps (n_i, H_i, W_i, C) -> tokens (n_i, N_i, D) of the patches that the visual tokens are."""
        weights = next(self.parameters(), maps[0])
        tokens = []
        for index, m in enumerate(maps):
            patches = m[..., : self.compressor.out_dim].flatten(1, 2).to(weights.device, weights.dtype)
            tokens.append(project(torch.take_along_dim(patches, self._places[index].unsqueeze(2), 1)))
        return tokens

    def _project_level(self, number: int, tokens: Tensor) -> Tensor:
        """(n, N, C') of a DeepStack level -> (n, N, D), by its new projector or the model's own merger."""
        if self.level_projectors is not None:
            return self.level_projectors[number](tokens)
        base, _ = self._outside
        deepstack = self.family.deepstack
        assert deepstack is not None  # there are levels
        return deepstack.project(base.get_submodule(f"{deepstack.mergers}.{number}"), tokens)

    def _compress_maps(
        self, maps: list[Tensor], project: Callable[[Tensor], Tensor], texts: list[MapQuestions]
    ) -> list[Tensor]:
        """Maps (n_i, H_i, W_i, C) -> tokens (n_i, N_i, D); those of one size together. `texts`: of each map,
        as `_embed_questions` gives them."""
        if self.compressor.training and self.compressor.draws:
            raise UsageError(
                "a compressor that draws its token count is used at one count here; choose "
                "it by reuse.pick(model, processor, scale)"
            )
        maps_of_size: dict[tuple[int, int], list[int]] = {}
        for index, m in enumerate(maps):
            height, width = m.shape[1:3]
            maps_of_size.setdefault((height, width), []).append(index)
        tokens_of_map: dict[int, Tensor] = {}
        for same in maps_of_size.values():
            features = torch.cat([maps[index] for index in same])
            # where the parts are; a compressor without weights takes the tower's output as it is
            weights = next(self.parameters(), features)
            features = features.to(weights.device, weights.dtype)
            lengths = [len(maps[index]) for index in same]
            inputs = self._gather_inputs(features, [texts[index] for index in same if texts])
            if self.position_keeper is not None or self._shares_choice:
                tokens, places = compress_with_places(self.compressor, *inputs)
                self._places.update(zip(same, places.split(lengths)))
            else:
                tokens = self.compressor(*inputs)
            tokens = project(tokens.to(features.dtype))
            tokens_of_map.update(zip(same, tokens.split(lengths)))
        return [tokens_of_map[index] for index in range(len(maps))]

    def _embed_questions(self, maps: list[Tensor], arguments: Kwargs) -> list[MapQuestions]:
        """Of each map (n, H, W, C) the questions that its crops stand with, (n, M, E), and which of the M
        words or pieces there are, (n, M); nothing for a compressor that reads none."""
        if self.question_reader is None:
            return []
        blanks = []
        for m in maps:
            count = self.compressor.num_tokens(*m.shape[1:3])
            blanks.append(m.new_zeros(1).expand(len(m), count, self._llm_dim))
        images = self._collect_images(maps, self._pack_tokens(blanks, maps, arguments))
        texts, masks = self.question_reader.embed_questions(images.counts, maps[0], self.encodes_videos)
        crops = [len(m) for m in maps]
        if self.encoded_kind.whole_images:
            repeats = torch.tensor(crops, device=texts.device)
            texts = texts.repeat_interleave(repeats, 0)
            masks = masks.repeat_interleave(repeats, 0)
        return list(zip(texts.split(crops), masks.split(crops)))

    @property
    def _llm_dim(self) -> int:
        """Width of the LLM's embeddings."""
        _, model = self._outside
        return llm_sizes(model.config)["llm_dim"]

    def _gather_inputs(self, features: Tensor, texts: list[MapQuestions]) -> tuple[Tensor, ...]:
        """What the compressor is called with: features (n, H, W, C) with what it asks for beside them in the
        channels, and the questions of their maps; in float32 for one without weights, which chooses by it."""
        extended = features  # through which the tower may be trained, unlike through what is added
        if self.question_reader is not None:
            extended = self.question_reader.add_joint(features, self.compressor.out_dim)
        if self.compressor.needs_projected:
            patches = features[..., : self.compressor.out_dim].flatten(1, 2)
            with torch.no_grad():
                projected = self.project_tokens(patches).unflatten(1, features.shape[1:3])
            extended = torch.cat([extended, projected.to(extended.dtype)], -1)
        if not texts:
            return (extended,)
        dtype = features.dtype
        if next(self.compressor.parameters(), None) is None:
            dtype = torch.float32
        text = torch.cat([text for text, _ in texts]).to(features.device, dtype)
        mask = torch.cat([mask for _, mask in texts]).to(features.device)
        return extended.to(dtype), text, mask

    def project_tokens(self, tokens: Tensor) -> Tensor:
        """(n, N, C') -> (n, N, D), by the new projector or the model's own."""
        if self.projector is not None:
            return self.projector(tokens)
        base, _ = self._outside
        return self.family.project(base.get_submodule(self.family.projector), tokens)

    def _collect_kept(self, maps: list[Tensor]) -> KeptPatches:
        """The patches that maps (n, H, W, C) have just been compressed to."""
        kept = KeptPatches([], [])
        for index, m in enumerate(maps):
            height, width = m.shape[1:3]
            for places in self._places[index]:
                kept.places.append(places)
                kept.grids.append((height, width))
        return kept

    def _collect_images(self, maps: list[Tensor], packed: list[Tensor]) -> EncodedImages:
        """What a query module reads of the images: patches by the unit that has placeholders of its own."""
        if self.encoded_kind.whole_images:
            patches = [m.flatten(0, 2) for m in maps]
            return EncodedImages(patches, [len(tokens) for tokens in packed])
        crops: list[Tensor] = []
        counts: list[int] = []
        for crops_of_map, tokens in zip(maps, packed):
            for crop in crops_of_map:  # none in a row without images
                crops.append(crop.flatten(0, 1))
                counts.append(len(tokens) // len(crops_of_map))
        return EncodedImages(crops, counts)

    def _embed_markers(self, original: Callable[..., Tensor], ids: Tensor) -> Tensor:
        """The LLM's embeddings, which have no rows for the markers."""
        embeds = self._hide_markers(original, ids)
        if ids.ndim != 2:  # the model looks up a placeholder
            return embeds
        return self._place_markers(ids, embeds)

    def _hide_markers(self, original: Callable[..., Tensor], ids: Tensor) -> Tensor:
        """Rows of a table of ids, in which markers are padding."""
        assert self.markers is not None  # wrapped with a query module alone
        return original(ids.masked_fill(self.markers.find_markers(ids), 0))

    def _embed_markers_beyond(
        self,
        embedder: Any,
        original: Callable[..., Tensor],
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """A family's embeddings of ids beyond its words, which the markers' ids are to it."""
        if input_ids is None:
            return original(inputs_embeds=inputs_embeds)
        assert self.markers is not None  # as above
        known = input_ids.masked_fill(self.markers.find_markers(input_ids), embedder.vocab_offset)
        return self._place_markers(input_ids, original(input_ids=known))

    def _place_markers(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """Embeddings (B, T, D) of ids (B, T) with the markers' own."""
        assert self.markers is not None and self.query_module is not None  # as above
        return self.markers.place_embeddings(ids, embeds, self.query_module.tokens)

    def _rope_index(
        self,
        original: Callable[..., Any],
        input_ids: Tensor,
        mm_token_type_ids: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Positions of the tokens' grids; tokens of an image without spatial order are counted as text is,
        those of a frame are a row of it, so that frames keep their times."""
        if video_grid_thw is not None and self.family.videos is None:  # `generate` asks before it encodes
            refuse_videos(original)
        grids = {"image_grid_thw": image_grid_thw, "video_grid_thw": video_grid_thw}
        given = {name: sizes for name, sizes in grids.items() if sizes is not None}
        if mm_token_type_ids is not None:  # `generate` asks for positions before it encodes
            self._check_types(mm_token_type_ids, given)
        if given and isinstance(self.position_keeper, GridPositionKeeper):
            assert mm_token_type_ids is not None  # as below
            return self.position_keeper.index_positions(
                original, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw, options
            )
        merge = read_merge_size(self._outside[0])
        for name, sizes in list(given.items()):
            if not len(sizes):
                continue
            shrunk = shrink_grids(self.compressor, merge, sizes, as_rows=name == "video_grid_thw")
            if shrunk is not None:
                given[name] = shrunk
                continue
            # transformers 5.3 and later give it, and `since` of families that ask is later
            assert mm_token_type_ids is not None
            mm_token_type_ids = mm_token_type_ids.masked_fill(mm_token_type_ids == IMAGE_TYPE, 0)
        return original(input_ids, mm_token_type_ids=mm_token_type_ids, **given, **options)

    def _check_types(self, types: Tensor, grids: dict[str, Tensor]) -> None:
        """UsageError for types (B, T) of placeholders that are not as many as the tokens of grids (n, 3)."""
        for name, sizes in grids.items():
            word, number = GRID_TYPES[name]
            tokens = 0
            for times, height, width in sizes.tolist():
                tokens += times * self.compressor.num_tokens(height, width)
            check_count(word, int((types == number).sum()), tokens)

    def _encode_inputs(self, base: nn.Module, args: Args, kwargs: Kwargs) -> HookResult:
        """Encodes images and videos, as `generate` does on its own, checks their counts, adds what EmbQ
        reads."""
        self._warn_of_frozen_parts()
        encoder = cast(ImageEncoder, base)  # all families' are: `insert_parts` has wrapped these methods
        kwargs = bind_arguments(base.forward, args, kwargs)
        if kwargs.get("pixel_values_videos") is not None and self.family.videos is None:
            refuse_videos(base.forward)
        ids = kwargs.get("input_ids")
        with ENCODING, self._note_prompt(kwargs):
            kwargs, outputs = self._encode_pixels(encoder, kwargs)
        if ids is None:
            if outputs and self.position_keeper is not None:
                raise UsageError(
                    "positions=keep: images came with inputs_embeds, which do not tell where these stand; "
                    "give input_ids"
                )
            if outputs and self.query_module is not None:
                raise UsageError(
                    "images came with inputs_embeds, which do not tell questions and query "
                    "tokens; give input_ids to a model with a query module"
                )
            return (), kwargs
        is_image, is_video = split_placeholders(ids, base.config, kwargs.get("mm_token_type_ids"))
        masks = {"image": is_image, "video": is_video}
        for word, is_placeholder in masks.items():
            check_placeholders(is_placeholder, word in outputs, word)
        if len(outputs) > 1:
            check_tellable(base, ids, is_video)
        for word, output in outputs.items():
            tokens = sum(len(entry) for entry in output.pooler_output)
            check_count(word, int(masks[word].sum()), tokens)
        self._read_outputs(kwargs, ids, masks, outputs)
        return (), kwargs

    def _encode_pixels(self, base: ImageEncoder, kwargs: Kwargs) -> tuple[Kwargs, dict[str, Any]]:
        """Arguments of the base's forward with its images and videos encoded, and what was made of each kind
        that is there."""
        self._encoded = []
        has_pixels = kwargs.get("pixel_values") is not None or kwargs.get("pixel_values_videos") is not None
        if self.compressor.training and has_pixels:
            # here: maps of other sizes, and of levels, are compressed by themselves
            self.compressor.begin_step()
        self._begun = True
        try:
            kwargs = encode_pixels(base, kwargs)
            outputs = dict(kwargs.get("mm_encoder_outputs") or {})
            # the model will ask for these, then
            if outputs.get("image") is None and kwargs.get("pixel_values") is not None:
                outputs["image"] = call_with_known_names(base.get_image_features, kwargs)
                self._encoded.append((kwargs["pixel_values"], outputs["image"]))
            if outputs.get("video") is None and kwargs.get("pixel_values_videos") is not None:
                outputs["video"] = call_with_known_names(base.get_video_features, kwargs)
                self._encoded.append((kwargs["pixel_values_videos"], outputs["video"]))
        finally:
            self._begun = False
        # sounds may be among them, too
        return kwargs, {word: outputs[word] for word in ("image", "video") if outputs.get(word) is not None}

    def _read_outputs(
        self, kwargs: Kwargs, ids: Tensor, masks: dict[str, Tensor], outputs: dict[str, Any]
    ) -> None:
        """Adds to a forward's arguments what encoded images and videos tell: positions of kept patches, and
        what a query module reads. `masks` (B, T) of the placeholders of each kind."""
        is_visual = masks["image"] | masks["video"]
        placeholders = [masks[word] for word in outputs]
        kept = None
        if self.position_keeper is not None:
            if outputs:
                kept = merge_kept(placeholders, [output.kept for output in outputs.values()])
            self.position_keeper.keep_positions(kwargs, is_visual, kept)
        if self.query_module is None or not outputs:
            return
        assert self.markers is not None  # it has come with them
        images = None
        if all(hasattr(output, "images") for output in outputs.values()):
            images = merge_images(placeholders, [output.images for output in outputs.values()])
        kwargs[CONTEXT] = self.markers.build_context(ids, is_visual, images)

    def _note_prompt(self, kwargs: Kwargs) -> AbstractContextManager[None]:
        """While it is open, the images of a forward's arguments have its questions."""
        if self.question_reader is None:
            return nullcontext()
        return self.question_reader.note_prompt(kwargs.get("input_ids"), kwargs.get("mm_token_type_ids"))

    def _warn_of_frozen_parts(self) -> None:
        """A warning, once, where a PEFT adapter is trained and parts of these are not."""
        _, model = self._outside
        if self._warned or not (self.training and torch.is_grad_enabled() and hasattr(model, "peft_config")):
            return
        frozen = []
        for name, part in self.named_children():
            # LoRA's layers in a part leave its own weights as they are, and these are not saved
            own_weights = [weight for key, weight in part.named_parameters() if "lora_" not in key]
            if own_weights and not any(weight.requires_grad for weight in own_weights):
                frozen.append(f"{PARTS_ATTRIBUTE}.{name}")
        if frozen:
            self._warned = True
            warnings.warn(
                f"{', '.join(frozen)}: neither trained themselves nor saved with the adapter; give PEFT's "
                "configuration modules_to_save=reuse.name_trained_parts(model)",
                stacklevel=2,
            )

    def _check_context_read(
        self,
        base: nn.Module,
        args: Args,  # noqa: ARG002
        kwargs: Kwargs,
        output: object,  # noqa: ARG002
    ) -> None:
        """UsageError for an LLM whose layers never saw the context."""
        if kwargs.get(CONTEXT) is not None:
            kwargs[CONTEXT].check_read(getattr(base, self.family.language_model))

    def _prepare_forward(self, model: nn.Module, args: Args, kwargs: Kwargs) -> HookResult:
        """Refuses a new turn behind a cache. Markers are no words to be learned: the output layer has no rows
        for them."""
        assert self.markers is not None  # hooked with a query module alone
        kwargs = bind_arguments(model.forward, args, kwargs)
        if not kwargs.pop(GUESSED, False):
            check_turn(kwargs.get("input_ids"), read_cache(kwargs), self.markers.query_id)
        labels = kwargs.get("labels")
        if labels is not None:
            kwargs["labels"] = labels.masked_fill(self.markers.find_markers(labels), IGNORE)
        return (), kwargs
