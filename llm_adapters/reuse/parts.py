"""What `attach` puts into a model: a compressor where the model's own reduction is, and EmbQ in its LLM.

pixels -> tower -> patch maps (n, H, W, C) -> compressor -> projector -> placeholders -> LLM
                        +------------ the same maps ---------------> query module, in the LLM
"""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.query_module import QueryModule
from connectors.versions import read_cache
from llm_adapters.adapter import CONTEXT, QueryAdapter
from llm_adapters.conversation import IGNORE
from llm_adapters.kept_turns import GUESSED, check_turn, says_guessed
from llm_adapters.reuse.families import ModelFamily, RawFunction, read_tower_dim
from llm_adapters.reuse.markers import EncodedImages, Markers
from llm_adapters.reuse.wrapping import (
    Wrapping,
    bind_arguments,
    check_placeholders,
    encode_pixels,
    extract_image_features,
)
from llm_adapters.visual_prompt import place_visual_tokens

PARTS_ATTRIBUTE = (
    "slothkit"  # the attribute of the model that holds the parts, and their prefix in its state dict
)


class VisualParts(nn.Module, QueryAdapter):
    """Compressor, projector (None: the model's own) and query module (or None) of the model they sit in."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: ModelFamily,
        compressor: Compressor,
        projector: nn.Module | None,
        query_module: QueryModule | None,
        markers: Markers | None,
    ):
        super().__init__()
        self.family, self.image_token_id = family, model.config.image_token_id
        self.compressor, self.projector = compressor, projector
        self.query_module, self.markers = query_module, markers
        self._outside = (model.base_model, model)  # in a tuple: a model is no part of its part
        self._wrapping, self._raw, self._levels = Wrapping(), False, {}
        self._made: tuple[Tensor | None, object] = None, None  # pixel values, and what was made of them

    def insert_parts(self) -> None:
        """Wrap the model's methods and register the hooks."""
        (base, model), wrap, handles = self._outside, self._wrapping.wrap_method, self._wrapping.handles
        modules = dict(base.named_modules())
        for path, raw in self.family.raw.items():
            owner, name = (modules[path], "forward") if path in modules else (base, path)
            wrap(owner, name, RawInstead(self, owner, raw))
        wrap(base, "get_image_features", self._image_features)
        if self.family.rope:
            wrap(base, "get_rope_index", self._rope_index)
        handles.append(base.register_forward_pre_hook(self._encode_inputs, with_kwargs=True))
        self._hook_levels(getattr(base, self.family.tower), base.config.vision_config)
        if self.query_module is not None:
            wrap(base.get_input_embeddings(), "forward", self._embed_markers)
            wrap(model, "prepare_inputs_for_generation", says_guessed)
            handles.append(model.register_forward_pre_hook(self._prepare_forward, with_kwargs=True))
            handles += self.hook_query_module(getattr(base, self.family.language_model))
            handles.append(base.register_forward_hook(self._check_context_read, with_kwargs=True))

    def remove_parts(self) -> None:
        """Undo `insert`."""
        self._wrapping.unwrap_all()
        for module in self._outside[0].modules():
            for name in ("query_insertion", "visual_level"):
                vars(module).pop(name, None)

    def _hook_levels(self, tower: nn.Module, vision) -> None:
        if not self.compressor.needs_levels:
            return
        count = getattr(vision, "num_hidden_layers", None) or vision.depth
        blocks = next(m for m in tower.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
        for level in self.compressor.needs_levels:
            index = level if level > 0 else count + 1 + level
            if not 1 <= index <= count:
                raise UsageError(
                    f"level {level}: the tower has {count} blocks; choose {-count}..-1 or 1..{count}"
                )
            blocks[index - 1].visual_level = index
            self._wrapping.handles.append(blocks[index - 1].register_forward_hook(self._record_level))
            self._levels[level] = index

    def _record_level(self, block: nn.Module, args: tuple, output) -> None:  # noqa: ARG002
        if self._raw is not False:
            self._raw[block.visual_level] = output[0] if isinstance(output, tuple) else output

    def _image_features(self, original: Callable, *args, **kwargs):
        """The model's `get_image_features`: visual tokens in `pooler_output`, and `images` beside it."""
        arguments, base = bind_arguments(original, args, kwargs), self._outside[0]
        pixels, made = self._made
        if pixels is not None and arguments["pixel_values"] is pixels:
            self._made = None, None
            return made
        self._raw = {}
        try:
            output = original(*args, **{**kwargs, "return_dict": True})
        finally:
            self._raw = False
        entries = output.pooler_output
        maps = [self.family.maps(base, entry, arguments, i) for i, entry in enumerate(entries)]
        grids = [self.compressor.out_grid(*m.shape[1:3]) for m in maps]
        packed = [
            self.family.pack(base, tokens, arguments, i, grids[i])
            for i, tokens in enumerate(self._compress_maps(maps))
        ]
        output.pooler_output = torch.stack(packed) if isinstance(entries, Tensor) else packed
        if self.query_module is not None:
            output.images = self._collect_images([m[..., : read_tower_dim(base)] for m in maps], packed)
        return output

    def _compress_maps(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (n_i, H_i, W_i, C) -> tokens (n_i, N_i, D); those of one size together."""
        out: dict[int, Tensor] = {}
        for size in dict.fromkeys(m.shape[1:3] for m in maps):
            if self.compressor.visible(*size) != self.compressor.num_tokens(*size):
                raise UsageError(
                    "a compressor that draws its token count is used at one count here; choose "
                    "it by reuse.pick(model, processor, scale)"
                )
            same = [i for i, m in enumerate(maps) if m.shape[1:3] == size]
            features = torch.cat([maps[i] for i in same])
            like = next(self.parameters(), features)
            tokens = self.project(self.compressor(features.to(like.device, like.dtype)))
            out.update(zip(same, tokens.split([len(maps[i]) for i in same])))
        return [out[i] for i in range(len(maps))]

    def project(self, tokens: Tensor) -> Tensor:
        """(n, N, C') -> (n, N, D)."""
        if self.projector is not None:
            return self.projector(tokens)
        own = self._outside[0].get_submodule(self.family.projector)
        return self.family.project(own, tokens)

    def _collect_images(self, maps: list[Tensor], packed: list[Tensor]) -> EncodedImages:
        if self.family.whole_images:
            return EncodedImages([m.flatten(0, 2) for m in maps], [len(tokens) for tokens in packed])
        crops = [crop for m in maps for crop in rearrange(m, "n h w c -> n (h w) c")]
        return EncodedImages(crops, [len(tokens) // len(m) for m, tokens in zip(maps, packed) for _ in m])

    def _embed_markers(self, original: Callable, ids: Tensor) -> Tensor:
        """The LLM's embeddings, which have no rows for the markers."""
        markers = self.markers
        embeds = original(ids.masked_fill(markers.find_markers(ids), 0))
        if ids.ndim != 2:  # the model looks up a placeholder
            return embeds
        is_question = (ids == markers.question_id).unsqueeze(-1)
        embeds = torch.where(is_question, markers.question.to(embeds), embeds)
        return place_visual_tokens(embeds, ids == markers.query_id, self.query_module.tokens.to(embeds))

    def _rope_index(
        self,
        original: Callable,
        input_ids: Tensor,
        mm_token_type_ids: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        **options,
    ):
        """Positions of the tokens' grids; tokens without spatial order are counted as text is."""
        if image_grid_thw is not None and len(image_grid_thw):
            grids = [self.compressor.out_grid(int(h), int(w)) for _, h, w in image_grid_thw]
            if None in grids:
                mm_token_type_ids = mm_token_type_ids.masked_fill(mm_token_type_ids == 1, 0)
            else:
                merge = self._outside[0].config.vision_config.spatial_merge_size
                sizes = image_grid_thw.new_tensor(grids) * merge
                image_grid_thw = torch.cat([image_grid_thw[:, :1], sizes], 1)
        return original(
            input_ids, mm_token_type_ids=mm_token_type_ids, image_grid_thw=image_grid_thw, **options
        )

    def _encode_inputs(self, base: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Encodes images, as `generate` does on its own, checks their count, adds what EmbQ reads."""
        kwargs = encode_pixels(base, bind_arguments(base.forward, args, kwargs))
        ids, image = kwargs.get("input_ids"), (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if image is None and kwargs.get("pixel_values") is not None:  # the model will ask for these, then
            image = extract_image_features(base, kwargs)
            self._made = kwargs["pixel_values"], image
        if ids is None:
            if image is not None and self.query_module is not None:
                raise UsageError(
                    "images came with inputs_embeds, which do not tell questions and query "
                    "tokens; give input_ids to a model with a query module"
                )
            return (), kwargs
        is_image = ids == self.image_token_id
        check_placeholders(is_image, image is not None)
        if image is None:
            return (), kwargs
        found, made = int(is_image.sum()), sum(len(tokens) for tokens in image.pooler_output)
        if found != made:
            raise UsageError(
                f"the text has {found} image placeholders but its images make {made} visual "
                "tokens; make inputs with the processor that was given to `attach`, and choose "
                "a scale by reuse.pick"
            )
        if self.query_module is not None:
            kwargs[CONTEXT] = self.markers.build_context(ids, is_image, getattr(image, "images", None))
        return (), kwargs

    def _check_context_read(self, base: nn.Module, args: tuple, kwargs: dict, output) -> None:  # noqa: ARG002
        if kwargs.get(CONTEXT) is not None:
            kwargs[CONTEXT].check_read(getattr(base, self.family.language_model))

    def _prepare_forward(self, model: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        """Refuses a new turn behind a cache. Markers are no words to be learned: the output layer has no rows
        for them."""
        kwargs = bind_arguments(model.forward, args, kwargs)
        if not kwargs.pop(GUESSED, False):
            check_turn(kwargs.get("input_ids"), read_cache(kwargs), self.markers.query_id)
        labels = kwargs.get("labels")
        if labels is not None:
            kwargs["labels"] = labels.masked_fill(self.markers.find_markers(labels), IGNORE)
        return (), kwargs


class RawInstead:
    """While images are encoded, patch features instead of the model's own reduction; with a compressor's
    levels beside them in the channels."""

    def __init__(self, parts: VisualParts, owner: nn.Module, raw: RawFunction):
        self.parts, self.owner, self.raw = parts, owner, raw

    def __call__(self, original: Callable, features: Tensor, *args, **kwargs):
        parts, levels = self.parts, []
        if parts._raw is False:
            return original(features, *args, **kwargs)
        if self.owner is not parts._outside[0]:  # its projector
            found = (parts._raw[index] for index in parts._levels.values())
            levels = [level[..., -features.shape[-2] :, :] for level in found]  # CLS comes first
        return self.raw(self.owner, features, *levels)
