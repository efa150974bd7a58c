"""Token ids and images -> what the LLM reads: embeddings, a mask, positions, and what travels beside them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache

from compressors.errors import UsageError
from connectors.query_module import QueryModule, read_query_tokens
from llm_adapters.adapter import QueryContext
from llm_adapters.composed.image_encoding import ImageEncoder
from llm_adapters.composed.query_context import make_query_context
from llm_adapters.composed.tower_text import TurnQuestions
from llm_adapters.conversation import IMAGE, QUERY
from llm_adapters.kept_positions import check_rotary, complete_positions, count_positions, shift_positions
from llm_adapters.kept_turns import check_turn
from llm_adapters.pruning.apply import PruningAdapter
from llm_adapters.pruning.base import Prompt
from llm_adapters.visual_prompt import (
    check_count,
    check_image_turns,
    check_one_text,
    clear_fill,
    fit_turns,
    hide_absent,
    hide_unused,
    hide_visual_tokens,
    place_visual_tokens,
)


class PromptInputs(NamedTuple):
    """What a forward pass is given of a prompt, by the names and with the shapes that it has there.
    `is_trained`: whether something is learned from it, so that its turns have to be whole."""

    input_ids: Tensor | None
    inputs_embeds: Tensor | None
    attention_mask: Tensor | None
    position_ids: Tensor | None
    pixel_values: Tensor | None
    vision_features: Tensor | None
    image_turn: Tensor | None
    turns: Tensor | None
    query_index: Tensor | None
    questions: TurnQuestions | None
    hidden_visual: Tensor | None
    labels: Tensor | None
    prefix_length: int
    is_trained: bool

    @property
    def has_images(self) -> bool:
        """Whether images are given, as pixels or as features."""
        return self.pixel_values is not None or self.vision_features is not None


class PromptEmbeddings(NamedTuple):
    """Token embeddings (B, T, D), the query module's context; where positions are kept by how much those of
    the tokens (B, T) are further on; where images have numbers of tokens of their own, placeholders (B, T)
    that stand for none."""

    embeds: Tensor
    context: QueryContext | None = None
    shift: Tensor | None = None
    is_absent: Tensor | None = None


class TokenSequence(NamedTuple):
    """What the LLM reads in the place of token ids.

    embeds          (B, T, D)
    attention_mask  (B, T), or as it was given; None: all tokens are there
    position_ids    (B, T); None: the LLM's own choice
    context         what the query module reads; None: it does not act
    prompt          what a pruner sees; None without one, and without images
    shift           (B, T) or (B, 1), by how much positions are further on than counted where patches are left
                    out; None where they are not kept
    """

    embeds: Tensor
    attention_mask: Tensor | None
    position_ids: Tensor | None
    context: QueryContext | None = None
    prompt: Prompt | None = None
    shift: Tensor | None = None


class SequenceBuilder(ImageEncoder, PruningAdapter):
    """Mixin for a `QueryAdapter` that also holds a language model."""

    config: Any
    language_model: Any
    query_module: QueryModule | None
    training: bool
    adapter_number: int

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    # ---- one forward pass ----

    def build_sequence(self, inputs: PromptInputs, cache: Cache | None, is_guessed: bool) -> TokenSequence:
        """What the LLM reads for these inputs. `is_guessed`: `generate` asks, for words of the model's own
        behind its cache."""
        if inputs.inputs_embeds is not None:
            if inputs.has_images:
                raise UsageError(
                    "images were given with `inputs_embeds`; give `input_ids`, which tell where they stand"
                )
            sequence = TokenSequence(inputs.inputs_embeds, inputs.attention_mask, inputs.position_ids)
        else:
            sequence = self._embed_inputs(inputs, cache, is_guessed)
        sequence = self._complete_sequence(sequence, inputs, cache)
        if inputs.attention_mask is None and inputs.position_ids is not None:
            reads_question = inputs.has_images and self.compressor.reads_question
            reads_row = reads_question or sequence.context is not None or sequence.prompt is not None
            # with a mask of ours the LLM takes a row for one text, too
            if reads_row or sequence.attention_mask is not None:
                check_one_text(inputs.position_ids)
        return sequence

    def _embed_inputs(self, inputs: PromptInputs, cache: Cache | None, is_guessed: bool) -> TokenSequence:
        """The sequence of token ids, before anything is hidden or moved."""
        input_ids = inputs.input_ids
        assert input_ids is not None  # transformers' own check has been: one of the two is given
        if self.query_module is not None and not inputs.has_images and not is_guessed:
            check_turn(input_ids, cache, self.config.query_token_id)
        features = inputs.vision_features
        if features is None and inputs.pixel_values is not None:
            features = self.get_image_features(inputs.pixel_values)
        if inputs.prefix_length:
            return self._embed_behind_prefix(inputs, input_ids, features)
        return self._embed_prompt(inputs, input_ids, features)

    def _embed_prompt(
        self, inputs: PromptInputs, input_ids: Tensor, features: Tensor | None
    ) -> TokenSequence:
        """The sequence of whole rows, with their images if they have some."""
        turns = inputs.turns
        if turns is not None:
            # while decoding without a cache the ids grow, and `turns` stay those of the prompt
            turns = fit_turns(turns, input_ids.shape[1], inputs.is_trained)
        embeds, context, shift, is_absent = self.embed_tokens(
            input_ids, features, inputs.image_turn, turns, inputs.query_index, inputs.questions
        )
        attention_mask = inputs.attention_mask
        if is_absent is not None:
            attention_mask = hide_absent(attention_mask, is_absent)
            if context is not None:
                # here, too: of a mask of pairs, as `generate` makes one for a static cache, it reads nothing
                context.hide_tokens(~is_absent)
        prompt = None
        if features is not None:
            assert inputs.turns is not None and turns is not None  # `embed_tokens` has refused else
            attention_mask = self._hide_unused_tokens(attention_mask, input_ids, features)
            length = inputs.turns.shape[1]
            prompt = self.describe_prompt(input_ids, turns, length, attention_mask, inputs.labels, embeds)
        return TokenSequence(embeds, attention_mask, inputs.position_ids, context, prompt, shift)

    def _embed_behind_prefix(
        self, inputs: PromptInputs, input_ids: Tensor, features: Tensor | None
    ) -> TokenSequence:
        """The sequence of the tokens behind a cached prefix that all images stand in. `turns` and
        `query_index` are of whole rows, as mask and positions are."""
        length = inputs.prefix_length
        turns = inputs.turns
        if turns is not None and turns.shape[1] != input_ids.shape[1] + length:
            raise UsageError(
                f"`prefix_length`={length}, `input_ids` of {input_ids.shape[1]} tokens, `turns` of "
                f"{turns.shape[1]}: give the tokens behind the prefix, and `turns` of whole rows"
            )
        embeds, *_ = self.embed_tokens(input_ids, None, None, None, None)
        context = None
        if self.query_module is not None:
            context = self._make_context_behind_prefix(inputs, input_ids, features, embeds)
        positions = inputs.position_ids
        if positions is None:
            positions = count_positions(inputs.attention_mask)
            if positions is not None:
                positions = positions[:, length:]
        shift = self._count_left_out(inputs.image_turn, None, features)
        return TokenSequence(embeds, inputs.attention_mask, positions, context, shift=shift)

    def _complete_sequence(
        self, sequence: TokenSequence, inputs: PromptInputs, cache: Cache | None
    ) -> TokenSequence:
        """The sequence with the mask and the positions that the LLM gets."""
        attention_mask = sequence.attention_mask
        positions = sequence.position_ids
        if self.compressor.keeps_positions:
            # `position_ids` that come with images count the tokens that are there, as `generate`'s do; others
            # are as they should be
            check_rotary(self.language_model)
            attention_mask, positions = complete_positions(attention_mask, positions, cache, sequence.embeds)
            if sequence.shift is not None:
                positions = positions + sequence.shift
        if inputs.hidden_visual is not None:
            if inputs.input_ids is None:
                raise UsageError(
                    "`hidden_visual` needs `input_ids`, which tell where the visual tokens stand"
                )
            is_image = inputs.input_ids == self.config.image_token_id
            attention_mask, positions = hide_visual_tokens(
                attention_mask, positions, is_image, inputs.hidden_visual
            )
        if positions is None and cache is None:
            positions = count_positions(attention_mask)
        if sequence.context is not None:
            sequence.context.owner = self.adapter_number
            sequence.context.hide_tokens(attention_mask)
        return sequence._replace(attention_mask=attention_mask, position_ids=positions)

    # ---- its parts ----

    def embed_tokens(
        self,
        input_ids: Tensor,
        features: Tensor | None,
        image_turn: Tensor | None,
        turns: Tensor | None,
        query_index: Tensor | None,
        questions: TurnQuestions | None = None,
    ) -> PromptEmbeddings:
        """Token embeddings with visual and query tokens in place, and what else follows from the images."""
        self._check_placeholders()
        is_image = input_ids == self.config.image_token_id
        is_query = input_ids == self.config.query_token_id
        is_text = ~(is_image | is_query)
        # placeholders may lie beyond the LLM's embedding table: they read row 0, and are replaced
        text_embeds = self.get_input_embeddings()(input_ids.masked_fill(~is_text, 0))
        embeds = text_embeds
        if self.query_module is not None:
            embeds = place_visual_tokens(embeds, is_query, read_query_tokens(self.query_module).to(embeds))
        if features is None:
            check_count(is_image, 0, None, self.training)
            return PromptEmbeddings(embeds)
        if image_turn is None or turns is None:
            raise UsageError(
                "images were given without `turns` and `image_turn`; make inputs with the processor"
            )
        check_image_turns(features, image_turn)
        features = clear_fill(features, image_turn)
        is_question = (turns > 0) & is_text
        visual, kept, is_there = self.compress_features(
            features, text_embeds, turns, image_turn, is_question, questions
        )
        check_count(is_image, visual.shape[1] // features.shape[1], image_turn, self.training)
        # a gather, not a masked assignment: its shapes do not depend on the data, so it compiles
        order = (is_image.cumsum(1) - 1).clamp(0, visual.shape[1] - 1)
        gathered = visual.gather(1, order.unsqueeze(-1).expand(-1, -1, visual.shape[-1]))
        embeds = torch.where(is_image.unsqueeze(-1), gathered, embeds)
        shift = None
        if kept is not None:
            patches = features.shape[2] * features.shape[3]
            shift = shift_positions(is_image, kept.flatten(1).gather(1, order), kept.shape[2], patches)
        is_absent = None
        if is_there is not None:
            is_absent = is_image & ~is_there.gather(1, order)
        context = None
        if self.query_module is not None:
            context = make_query_context(
                self.query_module,
                self.vision_tower.dim,
                features.to(embeds.dtype),
                image_turn,
                turns,
                query_index,
                is_query,
                is_text,
            )
        return PromptEmbeddings(embeds, context, shift, is_absent)

    def _check_placeholders(self) -> None:
        """UsageError for a configuration that was made without the tokenizer's ids."""
        needed = ["image_token_id"]
        if self.query_module is not None:
            needed.append("query_token_id")
        for name in needed:
            if getattr(self.config, name) is None:
                marker = IMAGE if name == "image_token_id" else QUERY
                raise UsageError(
                    f"config.{name} is None; set it to the id that the tokenizer has for {marker}"
                )

    def _make_context_behind_prefix(
        self, inputs: PromptInputs, input_ids: Tensor, features: Tensor | None, embeds: Tensor
    ) -> QueryContext | None:
        """The same for the tokens behind a cached prefix."""
        assert self.query_module is not None  # asked for by the caller
        if self.query_module.prefuses:
            raise UsageError(
                f"`prefix_length`: {self.config.query_module} reads visual tokens and question together; "
                "give whole rows"
            )
        image_turn, turns, query_index = inputs.image_turn, inputs.turns, inputs.query_index
        if features is None or image_turn is None or turns is None or query_index is None:
            raise UsageError("`prefix_length` needs images, `image_turn`, `turns` and `query_index`")
        features = clear_fill(features, image_turn).to(embeds.dtype)
        is_query = input_ids == self.config.query_token_id
        turns = turns[:, inputs.prefix_length :]
        query_index = torch.where(query_index < 0, query_index, query_index - inputs.prefix_length)
        return make_query_context(
            self.query_module,
            self.vision_tower.dim,
            features,
            image_turn,
            turns,
            query_index,
            is_query,
            ~is_query,
        )

    def _count_left_out(
        self, image_turn: Tensor | None, pixels: Tensor | None, features: Tensor | None
    ) -> Tensor | None:
        """Patches (B, 1) that are left out in the images of each row; None where there are no images, or
        positions are not kept."""
        if not self.compressor.keeps_positions or image_turn is None:
            return None
        if features is not None:
            height, width = features.shape[2:4]
            left_out = height * width - self.compressor.num_tokens(height, width)
        else:
            assert pixels is not None  # one of the two comes with `image_turn`
            left_out = self.num_left_out(pixels.shape[-2], pixels.shape[-1])
        return (image_turn > 0).sum(1, keepdim=True) * left_out

    def _hide_unused_tokens(
        self, attention_mask: Tensor | None, input_ids: Tensor, features: Tensor
    ) -> Tensor | None:
        """The mask, with the places that a compressor trained at several token counts leaves empty."""
        height, width = features.shape[2:4]
        return hide_unused(
            attention_mask,
            input_ids == self.config.image_token_id,
            self.compressor.num_tokens(height, width),
            self.compressor.visible(height, width),
        )
