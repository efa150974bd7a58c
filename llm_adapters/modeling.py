"""The composed model: a transformers PreTrainedModel that is trained, generates, is saved and loaded as any.

pixels -> tower (B, I, H, W, C) -> compressor -> projector -> visual tokens at the placeholders -> LLM
                   +---------------- the same features -----------------> query module, in the LLM
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

import compressors
from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.pretrained import reset_outputs
from connectors.projector import registry as projectors
from connectors.query_module import QueryModule, take_at_positions
from connectors.query_modules import registry as query_modules
from connectors.towers.base import VisionTower
from connectors.towers.build import build_tower
from connectors.towers.build_text import build_text_encoder
from connectors.versions import CACHE
from llm_adapters.adapter import (
    CONTEXT,
    QueryAdapter,
    QueryContext,
    llm_sizes,
    make_query_masks,
    mask_images,
    query_positions,
)
from llm_adapters.answers import (
    AnswerOutput,
    AnswerStates,
    Lesson,
    WithoutHead,
    can_split_head,
    compute_answer_loss,
    take_answer_states,
)
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.kept_positions import (
    check_rotary,
    complete_positions,
    compress_with_places,
    count_last_positions,
    count_positions,
    shift_positions,
)
from llm_adapters.kept_turns import GUESSED, check_turn, says_guessed
from llm_adapters.pruning.apply import PruningAdapter, check_positions
from llm_adapters.pruning.attention import PRUNING_CONTEXT as PRUNING
from llm_adapters.tower_text import TurnQuestions, embed_questions, gather_questions
from llm_adapters.visual_prompt import (
    Mute,
    check_count,
    clear_fill,
    compress_with_presence,
    fit_turns,
    hide_absent,
    hide_unused,
    mute_tokens,
    place_visual_tokens,
    shrink_pixels,
)

GUESSING_OPTIONS = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
PREFILL_ONLY = (
    "pixel_values",
    "vision_features",
    "image_turn",
    "turns",
    "query_index",
    "question_ids",
    "question_mask",
    "prefix_length",
)


def guesses_tokens(options: Mapping[str, Any], generation_config: Any) -> bool:
    """Whether `generate` verifies guesses: of an assistant, of earlier layers, or of a look-up in the
    prompt."""
    is_asked = any(options.get(name) for name in GUESSING_OPTIONS)
    return is_asked or any(getattr(generation_config, name, None) for name in GUESSING_OPTIONS)


class VisualTokens(NamedTuple):
    """Of rows of I images: the tokens at the LLM's width (B, I * N, D); where positions are kept the patches
    (B, I, N) that they stand at; where images have numbers of their own which there are, (B, I * N)."""

    tokens: Tensor
    kept: Tensor | None
    is_there: Tensor | None


class PromptEmbeddings(NamedTuple):
    """Token embeddings (B, T, D), the query module's context; where positions are kept by how much those of
    the tokens (B, T) are further on; where images have numbers of tokens of their own, placeholders (B, T)
    that stand for none."""

    embeds: Tensor
    context: QueryContext | None = None
    shift: Tensor | None = None
    is_absent: Tensor | None = None


class FlashSlothForConditionalGeneration(PreTrainedModel, GenerationMixin, QueryAdapter, PruningAdapter):
    """B rows, I images of a row (crops, where images are tiled), T tokens, S query tokens of a row. The
    processor makes all inputs.

    input_ids        (B, T)              every visual and query token already has its placeholder id
    pixel_values     (B, I, 3, h, w)     or `vision_features` (B, I, H, W, C), what a frozen tower gave before
                                         (its output, then what else the compressor needs, in the channels)
    image_turn       (B, I)              turn each image stands in, from 1; 0 fills rows with fewer images
    turns            (B, T)              turn of question, image and query tokens, 0 elsewhere
    query_index      (B, S)              positions of query tokens, -1 fills; optional, read off `input_ids`
    question_ids     (B, R, M, L)        questions of a row's turns, for the tower's own text encoder, where a
                                         compressor compares patches with them; R: turns of the longest row,
                                         M: pieces of the longest question
    question_mask    (B, R, M)           which of them there are
    answer_index     (N,)                of `llm_adapters.answers.index_answers`: with `labels`, the logits of
                                         these positions alone are computed; optional, in training
    lesson                               what a teacher says of these positions, for the loss; optional
    prefix_length                        tokens that the cache holds with all images, before any question
                                         (`llm_adapters.shared_prefix`); `input_ids` are those behind them
    hidden_visual    (B,) or (B, T)      True for rows, or places, whose visual tokens the LLM does not see,
                                         while the query module reads the images all the same; optional, in
                                         training
    without_head                         True: the LLM's hidden states instead of logits and loss

    Raises UsageError when the placeholders do not match the images' tokens (not inside torch.compile).
    """

    config_class = FlashSlothConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    def __init__(
        self,
        config: FlashSlothConfig,
        vision_tower: VisionTower | None = None,
        language_model: PreTrainedModel | None = None,
    ):
        """Parts that are given are taken as they are, with their weights; others are built from `config`."""
        super().__init__(config)
        self.vision_tower = vision_tower or build_tower(config.vision_config, config.select_layer)
        if config.tower_text_config is not None and self.vision_tower.text_encoder is None:
            self.vision_tower.add_text_encoder(build_text_encoder(config.tower_text_config))
        elif self.vision_tower.text_encoder is not None:
            config.tower_text_config = self.vision_tower.text_encoder.config
        self.language_model: Any = language_model or AutoModelForCausalLM.from_config(config.text_config)
        reset_outputs(self.language_model.config)
        sizes = llm_sizes(config)
        self.compressor: Compressor = compressors.create(
            config.compressor,
            dim=self.vision_tower.dim,
            llm_dim=sizes["llm_dim"],
            **(config.compressor_knobs or {}),
        )
        self.vision_tower.check_needs(self.compressor.needs_levels, self.compressor.needs_cues)
        if self.compressor.keeps_positions:
            check_rotary(self.language_model)
        name = config.projector
        if name == "auto":
            name = "identity" if self.compressor.projects else "mlp2x_gelu"
        self.projector: nn.Module = projectors.create(
            name, in_dim=self.compressor.out_dim, llm_dim=sizes["llm_dim"], **(config.projector_knobs or {})
        )
        self.query_module: QueryModule | None = None
        if config.query_module is not None:
            self.query_module = query_modules.create(
                config.query_module,
                vision_dim=self.vision_tower.dim,
                **sizes,
                **(config.query_module_knobs or {}),
            )
            self.hook_query_module(self.language_model)
        if config.pruner is not None:
            self.set_pruner(config.pruner, **(config.pruner_knobs or {}))
        self.post_init()

    def set_compressor(self, name: str, **knobs: Any) -> None:
        """A compressor without weights in the place of this model's, whose tokens are as wide. UsageError for
        another one, an unknown name or knob, and one that asks the tower for what it does not have."""
        sizes = {"dim": self.vision_tower.dim, "llm_dim": llm_sizes(self.config)["llm_dim"]}
        compressor: Compressor = compressors.create(name, **sizes, **knobs)
        if compressor.out_dim != self.compressor.out_dim:
            raise UsageError(f"its tokens have {compressor.out_dim} channels, not {self.compressor.out_dim}")
        self.vision_tower.check_needs(compressor.needs_levels, compressor.needs_cues)
        if compressor.needs_tower_text:
            assert self.vision_tower.text_encoder is not None  # else it would have been refused
            self.config.tower_text_config = self.vision_tower.text_encoder.config
        if compressor.keeps_positions:
            check_rotary(self.language_model)
        if self.pruner is not None:
            check_positions(self.pruner, compressor.keeps_positions)
        weights = next(compressor.parameters(), None)
        if weights is not None:
            raise UsageError("it has weights, which nobody has trained; train it with compressor=")
        self.compressor = compressor.to(self.device).train(self.training)
        self.config.compressor = name
        self.config.compressor_knobs = knobs

    @property
    def base_model(self) -> Any:
        """The model without its head."""
        return WithoutHead(self)

    @property
    def keeps_positions(self) -> bool:
        """Whether visual tokens have the positions of their patches, with gaps where some are left out."""
        return self.compressor.keeps_positions

    @property
    def num_queries(self) -> int:
        """Query tokens a turn."""
        if self.query_module is None:
            return 0
        return self.query_module.num_queries

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

    def _init_weights(self, module: Any) -> None:
        # tower and LLM are PreTrainedModels and initialise themselves, ours as their constructors do
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

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
        weights = next(self.projector.parameters(), features)
        with torch.no_grad():
            projected = self.projector(features[..., : self.compressor.out_dim].to(weights.dtype))
        return torch.cat([features, projected.to(features.dtype)], -1)

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
        text = None
        text_mask = None
        if self.compressor.needs_text:
            # (B, I, T): the words of the turn that each image stands in
            of_turn = is_text.unsqueeze(1) & (turns.unsqueeze(1) == image_turn.unsqueeze(2))
            index = query_positions(rearrange(of_turn, "b i t -> (b i) t"))
            text = take_at_positions(embeds.repeat_interleave(images, 0), index)
            text_mask = index >= 0
        elif self.compressor.needs_tower_text:
            text, text_mask = embed_questions(self.vision_tower.text_encoder, questions, image_turn)
        flat = rearrange(features, "b i h w c -> (b i) h w c")
        # cached features are float16; a projector without weights takes the embeddings' type
        weights = next(self.projector.parameters(), embeds)
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
        is_image = input_ids == self.config.image_token_id
        is_query = input_ids == self.config.query_token_id
        is_text = ~(is_image | is_query)
        # placeholders may lie beyond the LLM's embedding table: they read row 0, and are replaced
        text_embeds = self.get_input_embeddings()(input_ids.masked_fill(~is_text, 0))
        embeds = text_embeds
        if self.query_module is not None:
            embeds = place_visual_tokens(embeds, is_query, self.query_module.tokens.to(embeds.dtype))
        if features is None:
            check_count(is_image, 0, None)
            return PromptEmbeddings(embeds)
        if image_turn is None or turns is None:
            raise UsageError(
                "images were given without `turns` and `image_turn`; make inputs with the processor"
            )
        if features.shape[:2] != image_turn.shape:
            raise UsageError(
                f"images of {tuple(features.shape[:2])} (rows, crops) but `image_turn` of "
                f"{tuple(image_turn.shape)}; make inputs with the model's own processor"
            )
        features = clear_fill(features, image_turn)
        is_question = (turns > 0) & is_text
        visual, kept, is_there = self.compress_features(
            features, text_embeds, turns, image_turn, is_question, questions
        )
        check_count(is_image, visual.shape[1] // features.shape[1], image_turn)
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
            features = features.to(embeds.dtype)
            context = self._make_query_context(features, image_turn, turns, query_index, is_query, is_text)
        return PromptEmbeddings(embeds, context, shift, is_absent)

    def _make_query_context(
        self,
        features: Tensor,
        image_turn: Tensor,
        turns: Tensor,
        query_index: Tensor | None,
        is_query: Tensor,
        is_text: Tensor,
    ) -> QueryContext | None:
        """What the query module reads at its layer: which question and which patches each query token sees.
        None for rows without query tokens."""
        if query_index is None:
            query_index = query_positions(is_query)
        if not query_index.shape[1]:
            return None
        query_turn = turns.gather(1, query_index.clamp(min=0))
        features = features[..., : self.vision_tower.dim]  # without levels and cues
        patches = rearrange(features, "b i h w c -> b (i h w) c")
        patches_of_image = patches.shape[1] // image_turn.shape[1]
        patch_turn = image_turn.repeat_interleave(patches_of_image, 1)
        question_mask, patch_mask = make_query_masks(query_index, turns * is_text, query_turn, patch_turn)
        visual_mask = None
        if self.query_module is not None and self.query_module.prefuses:
            is_visual = ~(is_query | is_text)
            visual_mask = mask_images(query_index, turns * is_visual, query_turn)
        return QueryContext(query_index, question_mask, patches, patch_mask, visual_mask=visual_mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        vision_features: Tensor | None = None,
        image_turn: Tensor | None = None,
        turns: Tensor | None = None,
        query_index: Tensor | None = None,
        question_ids: Tensor | None = None,
        question_mask: Tensor | None = None,
        hidden_visual: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        past_key_values: Cache | None = None,
        logits_to_keep: int | Tensor = 0,
        answer_index: Tensor | None = None,
        lesson: Lesson | None = None,
        answer_states: bool = False,
        prefix_length: int = 0,
        without_head: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The LLM's output and loss; inputs as the class says, the rest as in transformers' LLMs. With
        `answer_index` the loss alone, with `answer_states` too the states that a lesson is made of."""
        if cache is None:
            cache = past_key_values  # its name up to transformers 5.23
        is_generating = GUESSED in kwargs  # `generate` asks
        is_guessed = kwargs.pop(GUESSED, False)
        has_images = pixel_values is not None or vision_features is not None
        if inputs_embeds is not None and has_images:
            raise UsageError(
                "images were given with `inputs_embeds`; give `input_ids`, which tell where they stand"
            )
        context = None
        prompt = None
        shift = None  # of positions, where they are kept
        if inputs_embeds is None:
            assert input_ids is not None  # transformers' own check has been: one of the two is given
            if not has_images and self.query_module is not None and not is_guessed:
                check_turn(input_ids, cache, self.config.query_token_id)
            if pixel_values is not None and vision_features is None:
                vision_features = self.get_image_features(pixel_values)
            if is_guessed and input_ids.shape[1] == 1 and not has_images:
                # a decoding step: its one token is a word that was said, since placeholders are muted
                inputs_embeds = self.get_input_embeddings()(input_ids)
            elif prefix_length:
                inputs_embeds, context = self._embed_behind_prefix(
                    input_ids, vision_features, image_turn, turns, query_index, prefix_length
                )
                positions = count_positions(attention_mask)
                if position_ids is None and positions is not None:
                    position_ids = positions[:, prefix_length:]
                shift = self._count_left_out(image_turn, None, vision_features)
            else:
                # while decoding without a cache the ids grow, and `turns` stay those of the prompt
                fitted_turns = None
                if turns is not None:
                    is_trained = labels is not None or without_head
                    fitted_turns = fit_turns(turns, input_ids.shape[1], is_trained)
                questions = gather_questions(question_ids, question_mask)
                inputs_embeds, context, shift, is_absent = self.embed_tokens(
                    input_ids, vision_features, image_turn, fitted_turns, query_index, questions
                )
                if is_absent is not None:
                    attention_mask = hide_absent(attention_mask, is_absent)
                if vision_features is not None:
                    assert turns is not None and fitted_turns is not None  # `embed_tokens` has refused else
                    attention_mask = self._hide_unused_tokens(attention_mask, input_ids, vision_features)
                    prompt = self.describe_prompt(
                        input_ids, fitted_turns, turns.shape[1], attention_mask, labels, inputs_embeds
                    )
        if self.compressor.keeps_positions:
            attention_mask, position_ids = self._keep_positions(
                attention_mask, position_ids, inputs_embeds, cache, shift
            )
        if hidden_visual is not None:
            attention_mask, position_ids = self._hide_visual_tokens(
                attention_mask, position_ids, input_ids, hidden_visual
            )
        if position_ids is None and cache is None:
            position_ids = count_positions(attention_mask)
        if context is not None:
            context.hide_tokens(attention_mask)
            kwargs[CONTEXT] = context
        pruned_pass, cache = self.start_pruning(prompt, inputs_embeds.shape[1], cache, use_cache)
        if pruned_pass is not None:
            kwargs[PRUNING] = pruned_pass
        kwargs |= {
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "use_cache": use_cache,
            CACHE: cache,
        }
        if without_head:
            output = self.language_model.base_model(**kwargs)
        elif answer_index is not None and answer_states:
            output = self._find_answer_states(answer_index, **kwargs)
        elif answer_index is not None and can_split_head(self.language_model):
            output = self._compute_answer_loss(labels, answer_index, lesson, **kwargs)
        else:
            output = self.language_model(labels=labels, logits_to_keep=logits_to_keep, **kwargs)
        if is_generating and output.logits is not None:
            # a logits processor would do, but `generate` reads its signature in every step, which takes as
            # long as a layer of a small LLM
            mute_tokens(output.logits, (self.config.image_token_id, self.config.query_token_id))
        if pruned_pass is not None:
            pruned_pass.record_passed_tokens()
        if context is not None:
            context.check_read(self.language_model)
        return output

    def _embed_behind_prefix(
        self,
        input_ids: Tensor,
        features: Tensor | None,
        image_turn: Tensor | None,
        turns: Tensor | None,
        query_index: Tensor | None,
        prefix_length: int,
    ) -> tuple[Tensor, QueryContext | None]:
        """As `embed_tokens`, of the tokens behind a cached prefix that all images stand in. `turns` and
        `query_index` are of whole rows."""
        if turns is not None and turns.shape[1] != input_ids.shape[1] + prefix_length:
            raise UsageError(
                f"`prefix_length`={prefix_length}, `input_ids` of {input_ids.shape[1]} tokens, `turns` of "
                f"{turns.shape[1]}: give the tokens behind the prefix, and `turns` of whole rows"
            )
        embeds, *_ = self.embed_tokens(input_ids, None, None, None, None)
        if self.query_module is None:
            return embeds, None
        if self.query_module.prefuses:
            raise UsageError(
                f"`prefix_length`: {self.config.query_module} reads visual tokens and question together; "
                "give whole rows"
            )
        if features is None or image_turn is None or turns is None or query_index is None:
            raise UsageError("`prefix_length` needs images, `image_turn`, `turns` and `query_index`")
        features = clear_fill(features, image_turn).to(embeds.dtype)
        is_query = input_ids == self.config.query_token_id
        turns = turns[:, prefix_length:]
        query_index = torch.where(query_index < 0, query_index, query_index - prefix_length)
        context = self._make_query_context(features, image_turn, turns, query_index, is_query, ~is_query)
        return embeds, context

    def _keep_positions(
        self,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        embeds: Tensor,
        cache: Cache | None,
        shift: Tensor | None,
    ) -> tuple[Tensor | None, Tensor]:
        """The mask of tokens, and their positions where none is left out. `position_ids` that come with
        images count the tokens that are there, as `generate`'s do; others are as they should be."""
        check_rotary(self.language_model)
        attention_mask, position_ids = complete_positions(attention_mask, position_ids, cache, embeds)
        if shift is not None:
            position_ids = position_ids + shift
        return attention_mask, position_ids

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

    def _compute_answer_loss(
        self,
        labels: Tensor | None,
        answer_index: Tensor,
        lesson: Lesson | None,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> AnswerOutput:
        """The loss of `labels` without logits of other positions; `kwargs` are the decoder's."""
        if labels is None:
            raise UsageError("`answer_index` was given without `labels`, whose positions it tells")
        output = self.language_model.base_model(**kwargs)
        answers = compute_answer_loss(
            self.language_model, output, labels, answer_index, num_items_in_batch, lesson=lesson
        )
        return AnswerOutput(loss=answers.loss, divergence=answers.divergence)

    def _find_answer_states(self, answer_index: Tensor, **kwargs: Any) -> AnswerOutput:
        """The states before answer tokens, without logits; `kwargs` are the decoder's."""
        output = self.language_model.base_model(**kwargs)
        states: AnswerStates = take_answer_states(self.language_model, output, answer_index)
        return AnswerOutput(states=states)

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

    def _hide_visual_tokens(
        self,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        input_ids: Tensor | None,
        hidden_visual: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """The mask without the visual tokens of `hidden_visual`, which no token behind them reads then, and
        the positions of all tokens."""
        if input_ids is None:
            raise UsageError("`hidden_visual` needs `input_ids`, which tell where the visual tokens stand")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            # Counted before anything is hidden, as if the visual tokens were there: the text stands where it
            # will stand when they come back, so the LLM need not learn its distances twice.
            position_ids = count_positions(attention_mask)
        if hidden_visual.dim() == 1:
            hidden_visual = hidden_visual.unsqueeze(1)
        is_image = input_ids == self.config.image_token_id
        return attention_mask.masked_fill(is_image & hidden_visual, 0), position_ids

    def generate(self, *args: Any, logits_processor: Sequence[Any] | None = None, **kwargs: Any) -> Any:
        """As transformers' `generate`; image and query placeholders are never said."""
        if kwargs.get("hidden_visual") is not None:
            # decoding steps get the mask that was given, so their tokens would see what the prompt did not
            raise UsageError("`hidden_visual` is for training; leave it out, or mask the tokens yourself")
        if self.compressor.varies:
            kwargs = self._hide_absent_tokens(args, kwargs)
        generation_config = kwargs.get("generation_config")
        if len(args) > 1:  # `generate(ids, generation_config)`
            generation_config = args[1]
        if guesses_tokens(kwargs, generation_config or self.generation_config):
            # the forward mutes what is said, this what is guessed
            placeholders = (self.config.image_token_id, self.config.query_token_id)
            logits_processor = [*(logits_processor or ()), Mute(placeholders)]
        processors = LogitsProcessorList(logits_processor or ())
        return super().generate(*args, logits_processor=processors, **kwargs)

    def _hide_absent_tokens(self, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of `generate` with a mask, and features, of the tokens that images have: decoding steps
        get the mask that was given, and count positions by it."""
        ids = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        features = kwargs.get("vision_features")
        if ids is None or (features is None and kwargs.get("pixel_values") is None):
            return kwargs
        with torch.no_grad():
            if features is None:
                features = self.get_image_features(kwargs["pixel_values"])
            questions = gather_questions(kwargs.get("question_ids"), kwargs.get("question_mask"))
            turns = kwargs.get("turns")
            if turns is not None:
                turns = fit_turns(turns, ids.shape[1])
            *_, is_absent = self.embed_tokens(
                ids, features, kwargs.get("image_turn"), turns, kwargs.get("query_index"), questions
            )
        assert is_absent is not None  # the compressor varies
        without_pixels = {name: value for name, value in kwargs.items() if name != "pixel_values"}
        mask = hide_absent(kwargs.get("attention_mask"), is_absent)
        return {**without_pixels, "vision_features": features, "attention_mask": mask}

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Images and the query module act at prefill; cached decoding steps do without them."""
        inputs = says_guessed(
            super().prepare_inputs_for_generation, input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in PREFILL_ONLY:
                inputs.pop(name, None)
        if (
            self.compressor.keeps_positions
            and "vision_features" not in inputs
            and "pixel_values" not in inputs
        ):
            inputs["position_ids"] = self._continue_positions(input_ids, inputs, kwargs)
        return inputs

    def _continue_positions(
        self, input_ids: Tensor, inputs: dict[str, Any], kwargs: dict[str, Any]
    ) -> Tensor:
        """Positions of tokens that come without their row's images: behind all of its patches."""
        positions = count_last_positions(inputs, kwargs.get("attention_mask"), input_ids)
        images = kwargs.get("image_turn")
        left_out = self._count_left_out(images, kwargs.get("pixel_values"), kwargs.get("vision_features"))
        if left_out is not None:
            return positions + left_out
        if (input_ids == self.config.image_token_id).any():
            raise UsageError(
                "positions=keep: a cache of images that were not given to this `generate`; give the whole "
                "conversation without a KV cache"
            )
        return positions


AutoConfig.register("slothkit", FlashSlothConfig, exist_ok=True)
AutoModelForImageTextToText.register(FlashSlothConfig, FlashSlothForConditionalGeneration, exist_ok=True)
