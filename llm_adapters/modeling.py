"""The composed model: a transformers PreTrainedModel that is trained, generates, is saved and loaded as any.

pixels -> tower (B, I, H, W, C) -> compressor -> projector -> visual tokens at the placeholders -> LLM
                   +---------------- the same features -----------------> query module, in the LLM
"""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Cache,
    GenerationMixin,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

import compressors
from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.pretrained import reset_outputs
from connectors.projector import registry as projectors
from connectors.query_module import QueryModule
from connectors.query_modules import registry as query_modules
from connectors.towers.base import VisionTower
from connectors.towers.build import build_tower
from connectors.towers.build_text import build_text_encoder
from connectors.versions import CACHE
from llm_adapters.adapter import CONTEXT, QueryAdapter, llm_sizes
from llm_adapters.answers import Lesson, WithoutHead
from llm_adapters.composed.card import write_card
from llm_adapters.composed.generation import ComposedGeneration
from llm_adapters.composed.output import WantedOutput, run_language_model
from llm_adapters.composed.sequence import PromptInputs
from llm_adapters.composed.tower_text import gather_questions
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.kept_positions import check_rotary
from llm_adapters.kept_turns import GUESSED
from llm_adapters.pruning.apply import check_positions
from llm_adapters.pruning.attention import PRUNING_CONTEXT as PRUNING
from llm_adapters.unread import add_unread


class FlashSlothForConditionalGeneration(ComposedGeneration, QueryAdapter, PreTrainedModel, GenerationMixin):
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

    Raises UsageError when the placeholders do not match the images' tokens; in training on a GPU, which is
    not to wait for it, a RuntimeError by the device's own assertion, inside torch.compile nothing.
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
        if getattr(self.language_model.config.get_text_config(), "hidden_size_per_layer_input", None):
            raise UsageError(
                f"{type(self.language_model).__name__}: each of its layers reads inputs of its own for all "
                "tokens (per-layer embeddings), which visual tokens do not have; choose another LLM"
            )
        reset_outputs(self.language_model.config)
        sizes = llm_sizes(config)
        self.compressor = self._create_compressor(config.compressor, config.compressor_knobs or {})
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

    def _create_compressor(self, name: str, knobs: Mapping[str, Any]) -> Compressor:
        """A compressor between this model's tower and LLM. UsageError for one that asks them for what they do
        not have."""
        sizes = {"dim": self.vision_tower.dim, "llm_dim": llm_sizes(self.config)["llm_dim"]}
        compressor: Compressor = compressors.create(name, **sizes, **knobs)
        self.vision_tower.check_needs(compressor.needs_levels, compressor.needs_cues)
        if compressor.keeps_positions:
            check_rotary(self.language_model)
        return compressor

    def set_compressor(self, name: str, **knobs: Any) -> None:
        """A compressor without weights in the place of this model's, whose tokens are as wide. UsageError for
        another one, an unknown name or knob, and one that asks the tower for what it does not have.

        An image has another number of tokens then, and the processor has to follow before it makes inputs:
        `processor.image_tokens = model.num_image_tokens(*processor.crop_size)`. For a compressor that reads
        the question by the tower's own text encoder `processor.question_tokenizer` has to be set, too."""
        compressor = self._create_compressor(name, knobs)
        if compressor.out_dim != self.compressor.out_dim:
            raise UsageError(f"its tokens have {compressor.out_dim} channels, not {self.compressor.out_dim}")
        if compressor.needs_tower_text:
            assert self.vision_tower.text_encoder is not None  # else it would have been refused
            self.config.tower_text_config = self.vision_tower.text_encoder.config
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
    def num_queries(self) -> int:
        """Query tokens a turn."""
        if self.query_module is None:
            return 0
        return self.query_module.num_queries

    def _list_visual_parameters(self) -> list[nn.Parameter]:
        """Parameters of all parts but the LLM: a batch of text alone reads none of them."""
        parameters: list[nn.Parameter] = []
        for part in self.children():
            if part is not self.language_model:
                parameters += part.parameters()
        return parameters

    def initialize_weights(self) -> None:
        """Tower and LLM first, each by its own rules. In a class that is not its own transformers passes over
        modules without weights, and buffers that no file has stay as they were allocated (Falcon-H1)."""
        for part in self.modules():
            if part is not self and isinstance(part, PreTrainedModel):
                part.initialize_weights()
        super().initialize_weights()

    def _init_weights(self, module: Any) -> None:
        # tower and LLM are PreTrainedModels and initialise themselves, ours as their constructors do
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """As any model, with a README that says what this is and how it is loaded, unless there is one."""
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            write_card(self.config, Path(save_directory))

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_output_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.language_model.get_decoder()

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
        if (
            is_guessed
            and cache is not None
            and not has_images
            and input_ids is not None
            and input_ids.shape[1] == 1
        ):
            kwargs |= {"attention_mask": attention_mask, "position_ids": position_ids}
            kwargs |= {"use_cache": use_cache, "logits_to_keep": logits_to_keep}
            return self.decode_word(input_ids, cache, kwargs)
        inputs = PromptInputs(
            input_ids=input_ids,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            pixel_values=pixel_values,
            vision_features=vision_features,
            image_turn=image_turn,
            turns=turns,
            query_index=query_index,
            questions=gather_questions(question_ids, question_mask),
            hidden_visual=hidden_visual,
            labels=labels,
            prefix_length=prefix_length,
            is_trained=labels is not None or without_head,
        )
        sequence = self.build_sequence(inputs, cache, is_guessed)
        if self.training and torch.is_grad_enabled() and not has_images and cache is None:
            sequence = sequence._replace(embeds=add_unread(sequence.embeds, self._list_visual_parameters()))
        length = sequence.embeds.shape[1]
        pruned_pass, cache = self.start_pruning(sequence.prompt, length, cache, use_cache)
        if sequence.context is not None:
            kwargs[CONTEXT] = sequence.context
        if pruned_pass is not None:
            kwargs[PRUNING] = pruned_pass
        kwargs |= {
            "inputs_embeds": sequence.embeds,
            "attention_mask": sequence.attention_mask,
            "position_ids": sequence.position_ids,
            "use_cache": use_cache,
            CACHE: cache,
        }
        wanted = WantedOutput(labels, logits_to_keep, answer_index, lesson, answer_states, without_head)
        output = run_language_model(self.language_model, wanted, kwargs)
        if is_generating:
            self.mute_placeholders(output.logits)
        if pruned_pass is not None:
            pruned_pass.record_passed_tokens()
        if sequence.context is not None:
            sequence.context.check_read(self.language_model)
        return output


AutoModelForImageTextToText.register(FlashSlothConfig, FlashSlothForConditionalGeneration, exist_ok=True)
