"""Pixels -> patch features -> visual tokens at the LLM's width, and how many an image has."""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from compressors.base import Compressor
from connectors.query_module import take_at_positions
from connectors.towers.base import VisionTower
from llm_adapters.adapter import query_positions
from llm_adapters.composed.tower_text import TurnQuestions, embed_questions
from llm_adapters.kept_positions import compress_with_places
from llm_adapters.visual_prompt import compress_with_presence, shrink_pixels


class VisualTokens(NamedTuple):
    """Of rows of I images: the tokens at the LLM's width (B, I * N, D); where positions are kept the patches
    (B, I, N) that they stand at; where images have numbers of their own which there are, (B, I * N)."""

    tokens: Tensor
    kept: Tensor | None
    is_there: Tensor | None


class ImageEncoder:
    """Mixin for a module that holds a tower, a compressor and a projector."""

    config: Any
    vision_tower: VisionTower
    compressor: Compressor
    projector: nn.Module

    @property
    def keeps_positions(self) -> bool:
        """Whether visual tokens have the positions of their patches, with gaps where some are left out."""
        return self.compressor.keeps_positions

    def num_image_tokens(self, height: int | None = None, width: int | None = None) -> int:
        """Visual tokens of one image of (height, width) pixels; None: the tower's own size."""
        if height is None:
            height = self.vision_tower.image_size
        if width is None:
            width = height
        return self.compressor.num_tokens(*self._find_grid(height, width))

    def num_left_out(self, height: int, width: int) -> int:
        """Positions that an image of (height, width) pixels has beside its tokens': where they are kept,
        those of the patches that are left out."""
        if not self.compressor.keeps_positions:
            return 0
        rows, columns = self._find_grid(height, width)
        return rows * columns - self.compressor.num_tokens(rows, columns)

    def _find_grid(self, height: int, width: int) -> tuple[int, int]:
        """The patch grid that the compressor sees of an image of (height, width) pixels."""
        rate = self.compressor.image_rate
        return self.vision_tower.grid(height // rate, width // rate)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """(B, I, 3, h, w) -> uncompressed patch features (B, I, H, W, C)."""
        rows = pixel_values.shape[0]
        pixels = rearrange(pixel_values, "b i c h w -> (b i) c h w")
        pixels = shrink_pixels(pixels, self.compressor.image_rate)
        features = self.vision_tower.extract_features(
            pixels, self.compressor.needs_levels, self.compressor.needs_cues
        )
        return rearrange(features, "(b i) h w c -> b i h w c", b=rows)

    def add_projected(self, features: Tensor) -> Tensor:
        """(n, H, W, C) -> with what the projector makes of each patch behind it (n, H, W, C + D), for a
        compressor that chooses by it. No gradient comes from there."""
        if not self.compressor.needs_projected:
            return features
        weights = self._find_projector_weights(features)
        with torch.no_grad():
            projected = self.projector(features[..., : self.compressor.out_dim].to(weights.dtype))
        return torch.cat([features, projected.to(features.dtype)], -1)

    def _find_projector_weights(self, default: Tensor) -> Tensor:
        """A tensor of the type that the projector computes in. Weights in 4 bits are packed in integers."""
        for weights in self.projector.parameters():
            if weights.is_floating_point():
                return weights
        return default

    def compress_features(
        self,
        features: Tensor,
        embeds: Tensor,
        turns: Tensor,
        image_turn: Tensor,
        is_text: Tensor,
        questions: TurnQuestions | None = None,
    ) -> VisualTokens:
        """The tokens of images (B, I, H, W, C). A text-aware compressor reads the embeddings of the question
        in whose turn the image stands, by the LLM or by the tower's own text encoder."""
        rows, images = features.shape[:2]
        text, text_mask = self._find_questions(images, embeds, turns, image_turn, is_text, questions)
        flat = rearrange(features, "b i h w c -> (b i) h w c")
        # cached features are float16; a projector without weights takes the embeddings' type
        weights = self._find_projector_weights(embeds)
        chooses = bool(self.compressor.needs_cues) and next(self.compressor.parameters(), None) is None
        # scores of attention tie in half precision, before anything is chosen by them
        flat = flat.float() if chooses else flat.to(weights.dtype)
        if text is not None and self.compressor.needs_tower_text:
            text = text.to(flat.dtype)  # of another precision than cached features, or a cast LLM
        flat = self.add_projected(flat)
        kept = None
        is_there = None
        if self.compressor.keeps_positions:
            tokens, places = compress_with_places(self.compressor, flat, text, text_mask)
            kept = places.unflatten(0, (rows, images))
        elif self.compressor.varies:
            tokens, present = compress_with_presence(self.compressor, flat, text, text_mask)
            is_there = rearrange(present, "(b i) n -> b (i n)", b=rows)
        else:
            tokens = self.compressor(flat, text, text_mask)
        tokens = self.projector(tokens.to(weights.dtype))
        embedded = rearrange(tokens.to(embeds.dtype), "(b i) n d -> b (i n) d", b=rows)
        return VisualTokens(embedded, kept, is_there)

    def _find_questions(
        self,
        images: int,
        embeds: Tensor,
        turns: Tensor,
        image_turn: Tensor,
        is_text: Tensor,
        questions: TurnQuestions | None,
    ) -> tuple[Tensor | None, Tensor | None]:
        """What a text-aware compressor reads for each of B * I images, (B * I, L, E), and which of it is
        there (B * I, L); None for one that reads no text."""
        if self.compressor.needs_text:
            # (B, I, T): the words of the turn that each image stands in
            of_turn = is_text.unsqueeze(1) & (turns.unsqueeze(1) == image_turn.unsqueeze(2))
            index = query_positions(rearrange(of_turn, "b i t -> (b i) t"))
            return take_at_positions(embeds.repeat_interleave(images, 0), index), index >= 0
        if self.compressor.needs_tower_text:
            return embed_questions(self.vision_tower.text_encoder, questions, image_turn)
        return None, None
