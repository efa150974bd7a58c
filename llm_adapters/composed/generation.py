"""`generate` of the composed model: images and the query module act at prefill, and placeholders are never
said."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationMixin, LogitsProcessorList
from transformers.modeling_outputs import CausalLMOutputWithPast

from compressors.errors import UsageError
from connectors.versions import CACHE
from llm_adapters.composed.sequence import SequenceBuilder
from llm_adapters.composed.tower_text import gather_questions
from llm_adapters.kept_positions import count_last_positions
from llm_adapters.kept_turns import GUESSED
from llm_adapters.pruning.attention import PRUNING_CONTEXT
from llm_adapters.visual_prompt import Mute, fit_turns, hide_absent, mute_tokens

GUESSING_OPTIONS = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
PREFILL_ONLY = frozenset(
    {
        "pixel_values",
        "vision_features",
        "image_turn",
        "turns",
        "query_index",
        "question_ids",
        "question_mask",
        "prefix_length",
    }
)


def guesses_tokens(options: Mapping[str, Any], generation_config: Any) -> bool:
    """Whether `generate` verifies guesses: of earlier layers, or of a look-up in the prompt."""
    is_asked = any(options.get(name) for name in GUESSING_OPTIONS)
    return is_asked or any(getattr(generation_config, name, None) for name in GUESSING_OPTIONS)


class ComposedGeneration(SequenceBuilder, GenerationMixin):
    """Mixin for a PreTrainedModel that builds its sequences."""

    def generate(self, *args: Any, logits_processor: Sequence[Any] | None = None, **kwargs: Any) -> Any:
        """As transformers' `generate`; image and query placeholders are never said."""
        if kwargs.get("hidden_visual") is not None:
            # decoding steps get the mask that was given, so their tokens would see what the prompt did not
            raise UsageError("`hidden_visual` is for training; leave it out, or mask the tokens yourself")
        if kwargs.get("assistant_model") is not None:
            raise UsageError(
                "`assistant_model` is not supported: no image is handed to it; take prompt_lookup_num_tokens"
            )
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
            embedded = self.embed_tokens(
                ids, features, kwargs.get("image_turn"), turns, kwargs.get("query_index"), questions
            )
        assert embedded.is_absent is not None  # the compressor varies
        without_pixels = {name: value for name, value in kwargs.items() if name != "pixel_values"}
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = self._infer_mask(ids, args, kwargs)
        mask = hide_absent(mask, embedded.is_absent)
        return {**without_pixels, "vision_features": features, "attention_mask": mask}

    def _infer_mask(self, ids: Tensor, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The mask that `generate` would make for itself: without padding, if the token of it ends no
        answer."""
        asked = args[1] if len(args) > 1 else kwargs.get("generation_config")
        special_tokens: dict[str, Any] = {}
        for name in ("pad_token_id", "eos_token_id"):
            for value in (
                kwargs.get(name),
                getattr(asked, name, None),
                getattr(self.generation_config, name),
            ):
                if value is not None:
                    special_tokens.setdefault(name, value)
        padding = special_tokens.get("pad_token_id")
        ends = special_tokens.get("eos_token_id", [])
        if padding is None or padding in (ends if isinstance(ends, list) else [ends]):
            return torch.ones_like(ids)
        return ids.ne(padding).long()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Images and the query module act at prefill; cached decoding steps do without them."""
        given = kwargs
        if not is_first_iteration and kwargs.get("use_cache", True):
            given = {name: value for name, value in kwargs.items() if name not in PREFILL_ONLY}
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **given
        )
        inputs[GUESSED] = not is_first_iteration
        if (
            self.compressor.keeps_positions
            and "vision_features" not in inputs
            and "pixel_values" not in inputs
        ):
            inputs["position_ids"] = self._continue_positions(input_ids, inputs, kwargs)
        return inputs

    def decode_word(
        self, input_ids: Tensor, cache: Cache, arguments: dict[str, Any]
    ) -> CausalLMOutputWithPast:
        """The LLM's output for the word (B, 1) that was said last: placeholders are muted, so it is none.
        `arguments`: of the LLM beside the two. Little is done here, as it runs for each word of an answer."""
        if self.pruner is not None:
            run, _ = self.start_pruning(None, 1, cache, arguments["use_cache"])
            if run is not None:
                arguments[PRUNING_CONTEXT] = run
        arguments[CACHE] = cache
        embeds = self.language_model.get_input_embeddings()(input_ids)
        output: CausalLMOutputWithPast = self.language_model(inputs_embeds=embeds, **arguments)
        self.mute_placeholders(output.logits)
        return output

    def mute_placeholders(self, logits: Tensor | None) -> None:
        """Let image and query placeholders never be said: in place in logits (..., V), if there are any."""
        if logits is None:
            return
        # a logits processor would do, but `generate` reads its signature in every step, which takes as long
        # as a layer of a small LLM
        mute_tokens(logits, (self.config.image_token_id, self.config.query_token_id))

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
