"""Whether what lies in a saved model's folder fits together: generation settings, tokenizer, placeholders.
transformers takes the types of its JSON files for granted, and would fail in the middle of an answer."""

from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from compressors.errors import UsageError
from compressors.registry import conform
from llm_adapters.conversation import IMAGE, QUERY

PLACEHOLDERS = ("image_token_id", "query_token_id")
TokenIds = int | list[int] | None
COUNTS = (
    "max_length max_new_tokens min_length min_new_tokens num_beams num_return_sequences top_k "
    "no_repeat_ngram_size encoder_no_repeat_ngram_size max_cache_len prefill_chunk_size num_beam_groups "
    "num_assistant_tokens prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit "
    "bos_token_id pad_token_id decoder_start_token_id forced_bos_token_id"
)
NUMBERS = (
    "max_time temperature top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty "
    "encoder_repetition_penalty length_penalty diversity_penalty guidance_scale penalty_alpha "
    "assistant_confidence_threshold"
)
SWITCHES = (
    "do_sample use_cache renormalize_logits remove_invalid_values token_healing low_memory "
    "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate "
    "disable_compile is_assistant use_mtp"
)
OTHER_TYPES: dict[str, Any] = {
    "eos_token_id": TokenIds,
    "forced_eos_token_id": TokenIds,
    "suppress_tokens": list[int] | None,
    "begin_suppress_tokens": list[int] | None,
    "bad_words_ids": list[list[int]] | None,
    "force_words_ids": list[Any] | None,
    "constraints": list[Any] | None,
    "stop_strings": str | list[str] | None,
    "early_stopping": bool | str | None,
    "cache_implementation": str | None,
    "cache_config": dict[str, Any] | None,
    "sequence_bias": list[Any] | None,
    "exponential_decay_length_penalty": tuple[float, float] | None,
}


def list_generation_types() -> dict[str, Any]:
    """The type of each of transformers' generation settings."""
    types = dict(OTHER_TYPES)
    for names, hint in ((COUNTS, int | None), (NUMBERS, float | None), (SWITCHES, bool | None)):
        for name in names.split():
            types[name] = hint
    return types


def check_generation_settings(settings: GenerationConfig, where: str) -> None:
    """UsageError for generation settings of another type than transformers computes with."""
    for name, hint in list_generation_types().items():
        conform(getattr(settings, name, None), hint, f"{where}: generation_config.json: {name}")


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, where: str) -> None:
    """UsageError for a tokenizer of which words, or named tokens such as padding, have no embedding. Tokens
    that were added to it may have none: placeholders are replaced, others are read by nobody who has none."""
    added = tokenizer.get_added_vocab()
    special = set(tokenizer.all_special_tokens) - {IMAGE, QUERY}
    needed = {}
    for token, token_id in tokenizer.get_vocab().items():
        if token in special or token not in added:
            needed[token_id] = token
    last = max(needed, default=0)
    if last >= rows:
        raise UsageError(
            f"{where}: its tokenizer gives {needed[last]!r:.50} the id {last}, the model has {rows} "
            "embeddings; they do not belong together, save the model's own tokenizer into that folder"
        )


def check_placeholders(model: Any, processor: Any, where: str) -> None:
    """UsageError for a model and a processor with other ids or numbers of their placeholders. A processor for
    no images at all, that of a blind cell, has 0; of a compressor with several scales it may have any."""
    names = PLACEHOLDERS if model.num_queries else PLACEHOLDERS[:1]
    for name in names:
        wanted = getattr(processor, name)
        noted = getattr(model.config, name)
        if noted != wanted:
            raise UsageError(
                f"{where}: config.json has {name}={noted}, the tokenizer {wanted}; save the "
                "model and its processor there again"
            )
    if not processor.image_tokens or model.compressor.draws:  # a scale is picked once the model is loaded
        return
    height, width = processor.crop_size
    try:
        tokens = model.num_image_tokens(height, width)
    except UsageError as error:
        raise UsageError(f"{where}: an image of {height}x{width} pixels: {error}") from error
    if processor.image_tokens != tokens:
        raise UsageError(
            f"{where}: processor_config.json has image_tokens={processor.image_tokens}, but "
            f"{model.config.compressor} makes {tokens} of {height}x{width} pixels; set "
            f"processor.image_tokens = {tokens} and save the processor there again"
        )
