"""How encoded images become visual tokens: maps of patches through the compressor and a projector."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.query_module import QueryModule
from llm_adapters.adapter import llm_sizes
from llm_adapters.kept_positions import compress_with_places
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.parts.markers import EncodedImages
from llm_adapters.reuse.parts.positions import GridPositionKeeper, KeptPatches, PositionKeeper
from llm_adapters.reuse.parts.videos import VideoAdapter
from llm_adapters.reuse.questions import QuestionReader
from llm_adapters.reuse.wrapping import Kwargs

MapQuestions = tuple[Tensor, Tensor]  # of a map's crops (n, M, E), and which words or pieces there are (n, M)


class MapCompressor(nn.Module, VideoAdapter):
    """What `VisualParts` does with what the tower gives."""

    compressor: Compressor
    projector: nn.Module | None
    level_projectors: nn.ModuleList | None
    position_keeper: PositionKeeper | GridPositionKeeper | None
    question_reader: QuestionReader | None
    query_module: QueryModule | None
    _kept: Tensor | None
    _tower_dtype: torch.dtype | None
    _places: dict[int, Tensor]
    _begun: bool

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
            patches = [m[..., :tower_dim].to(self._tower_dtype or m.dtype) for m in maps]
            output["images"] = self._collect_images(patches, packed)

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
        return self.family.deepstack is not None and self.compressor.is_subset

    def _take_kept(self, maps: list[Tensor], project: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Maps (n_i, H_i, W_i, C) -> tokens (n_i, N_i, D) of the patches that the visual tokens are."""
        weights = self._find_weights(maps[0])
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
            weights = self._find_weights(features)
            dtype = weights.dtype
            if self.compressor.needs_cues and self._lacks_weights:
                dtype = features.dtype
            features = features.to(weights.device, dtype)
            lengths = [len(maps[index]) for index in same]
            texts_of_same = [texts[index] for index in same if texts]
            inputs = self._gather_inputs(features, texts_of_same, weights.dtype)
            if self.position_keeper is not None or self._shares_choice:
                tokens, places = compress_with_places(self.compressor, *inputs)
                self._places.update(zip(same, places.split(lengths)))
            else:
                tokens = self.compressor(*inputs)
            tokens = project(tokens.to(weights.dtype))
            tokens_of_map.update(zip(same, tokens.split(lengths)))
        return [tokens_of_map[index] for index in range(len(maps))]

    def _find_weights(self, features: Tensor) -> Tensor:
        """A tensor of where the parts are, and of their type; where these have no weights, of the tower's
        patches in features (n, H, W, C)."""
        patches = features[:0].to(self._tower_dtype or features.dtype)
        return next(self.parameters(), patches)

    @property
    def _lacks_weights(self) -> bool:
        """Whether the compressor has no weights: it chooses, and need not get what it reads in their type."""
        return next(self.compressor.parameters(), None) is None

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

    def _gather_inputs(
        self, features: Tensor, texts: list[MapQuestions], dtype: torch.dtype
    ) -> tuple[Tensor, ...]:
        """What the compressor is called with: features (n, H, W, C) with what it asks for beside them in the
        channels, and the questions of their maps; in float32 for one without weights, which chooses by it.
        dtype: the weights'."""
        extended = features  # through which the tower may be trained, unlike through what is added
        if self.question_reader is not None:
            extended = self.question_reader.add_joint(features, self.compressor.out_dim)
        if self.compressor.needs_projected:
            patches = features[..., : self.compressor.out_dim].flatten(1, 2).to(dtype)
            with torch.no_grad():
                projected = self.project_tokens(patches).unflatten(1, features.shape[1:3])
            extended = torch.cat([extended, projected.to(extended.dtype)], -1)
        if not texts:
            return (extended,)
        if self._lacks_weights:
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
