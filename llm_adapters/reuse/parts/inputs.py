"""What a forward is given: its images encoded and counted, positions, and what a query module reads."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from llm_adapters.adapter import CONTEXT
from llm_adapters.kept_turns import GUESSED
from llm_adapters.reuse.families.family import read_merge_size
from llm_adapters.reuse.parts.compressing import MapCompressor
from llm_adapters.reuse.parts.markers import Markers
from llm_adapters.reuse.parts.positions import IMAGE_TYPE, GridPositionKeeper, shrink_grids
from llm_adapters.reuse.parts.videos import check_tellable, merge_images, merge_kept, refuse_videos
from llm_adapters.reuse.wrapping import (
    PARTS_ATTRIBUTE,
    VIDEO_TYPE,
    Args,
    HookResult,
    ImageEncoder,
    Kwargs,
    bind_arguments,
    call_with_known_names,
    check_count,
    check_placeholders,
    encode_pixels,
    hold_encoding,
    is_of_peft,
    list_tower_options,
    split_placeholders,
)
from llm_adapters.unread import add_unread

# what `get_rope_index` calls the grids of a kind, and the type of its placeholders
GRID_TYPES = {"image_grid_thw": ("image", IMAGE_TYPE), "video_grid_thw": ("video", VIDEO_TYPE)}


class InputAdapter(MapCompressor):
    """What `VisualParts` does before and in a forward of the model."""

    markers: Markers | None
    adapter_number: int
    _encoded: list[tuple[Tensor, Any]]
    _warned: bool

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
        if getattr(base, "_is_replica", False):
            raise UsageError(
                "nn.DataParallel: its replicas would use what is attached on the first GPU; start a process "
                "for each GPU, with torchrun or accelerate launch, or show one (CUDA_VISIBLE_DEVICES=0)"
            )
        self._check_trainable()
        self._warn_of_frozen_parts()
        encoder = cast(ImageEncoder, base)  # all families' are: `insert_parts` has wrapped these methods
        kwargs = bind_arguments(base.forward, args, kwargs)
        is_guessed = kwargs.pop(GUESSED, False)
        if kwargs.get("pixel_values_videos") is not None and self.family.videos is None:
            refuse_videos(base.forward)
        ids = kwargs.get("input_ids")
        with hold_encoding(), self.note_prompt(kwargs):
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
            embeds = kwargs.get("inputs_embeds")
            if self.position_keeper is not None and embeds is not None:
                is_visual = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
                self.position_keeper.keep_positions(kwargs, is_visual, None)
            return (), kwargs
        is_image, is_video = split_placeholders(ids, base.config, kwargs.get("mm_token_type_ids"))
        masks = {"image": is_image, "video": is_video}
        if not is_guessed:
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
        options = list_tower_options(base, kwargs) if self.family.hands_options else {}
        self._begun = True
        try:
            kwargs = encode_pixels(base, kwargs, options)
            outputs = dict(kwargs.get("mm_encoder_outputs") or {})
            # the model will ask for these, then
            if outputs.get("image") is None and kwargs.get("pixel_values") is not None:
                outputs["image"] = call_with_known_names(base.get_image_features, kwargs, options)
                self._encoded.append((kwargs["pixel_values"], outputs["image"]))
            if outputs.get("video") is None and kwargs.get("pixel_values_videos") is not None:
                outputs["video"] = call_with_known_names(base.get_video_features, kwargs, options)
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
                if not all(hasattr(output, "kept") for output in outputs.values()):
                    # `generate` has cut the tokens, but not what is told of them
                    raise UsageError(
                        "positions=keep needs the whole prompt at once; leave out prefill_chunk_size"
                    )
                kept = merge_kept(placeholders, [output.kept for output in outputs.values()])
            self.position_keeper.keep_positions(kwargs, is_visual, kept)
        if self.query_module is None or not outputs:
            return
        assert self.markers is not None  # it has come with them
        images = None
        if all(hasattr(output, "images") for output in outputs.values()):
            images = merge_images(placeholders, [output.images for output in outputs.values()])
        context = self.markers.build_context(ids, is_visual, images)
        if context is not None:
            context.owner = self.adapter_number
        kwargs[CONTEXT] = context

    def _touch_unused_parts(
        self,
        base: nn.Module,  # noqa: ARG002
        args: Args,  # noqa: ARG002
        kwargs: Kwargs,
        output: Any,
    ) -> Any:
        """The output of the base's forward; in training, parts that nothing has read have a gradient of
        zeros."""
        is_encoded = any(kwargs.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
        is_encoded = is_encoded or bool(kwargs.get("mm_encoder_outputs"))
        is_read = self.query_module is None or kwargs.get(CONTEXT) is not None
        if not (self.training and torch.is_grad_enabled()) or (is_encoded and is_read):
            return output
        is_tuple = isinstance(output, tuple)
        hidden: Tensor = add_unread(output[0] if is_tuple else output.last_hidden_state, self.parameters())
        if is_tuple:
            return (hidden, *output[1:])
        output.last_hidden_state = hidden
        return output

    def note_prompt(self, kwargs: Kwargs) -> AbstractContextManager[None]:
        """While it is open, the images of a forward's arguments have its questions."""
        if self.question_reader is None:
            return nullcontext()
        return self.question_reader.note_prompt(kwargs.get("input_ids"), kwargs.get("mm_token_type_ids"))

    def _check_trainable(self) -> None:
        """UsageError where PEFT has put a copy in the place of all parts, which nothing would use, and where
        its layer at the LLM's embeddings looks up the ids of markers itself, which have no rows there."""
        base, model = self._outside
        if is_of_peft(getattr(model, PARTS_ATTRIBUTE)):
            raise UsageError(
                f"modules_to_save={PARTS_ATTRIBUTE}: PEFT would train a copy that the model does not use; "
                "give modules_to_save=reuse.name_trained_parts(model)"
            )
        embeddings: Any = base.get_input_embeddings()
        if self.markers is None or not is_of_peft(embeddings) or hasattr(embeddings, "modules_to_save"):
            return  # a copy of the whole embeddings places markers as they do
        is_lora = hasattr(embeddings, "lora_embedding_A")
        adds_to_rows = is_lora and self.markers.last_id < embeddings.base_layer.num_embeddings
        if not adds_to_rows:
            raise UsageError(
                "a query module's tokens have no rows in the embeddings that PEFT trains a part of; leave "
                "these out of target_modules and trainable_token_indices, or name them in modules_to_save"
            )

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
