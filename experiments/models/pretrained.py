"""A cell's language model, tokenizer and tower configuration, by `llm.source` and `tower.source`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from compressors.errors import UsageError, shorten_reason
from connectors.hub import is_open_clip, split_open_clip
from connectors.pretrained import check_weight_files, load_model, load_pretrained
from connectors.towers.huggingface import read_saved_preprocessing
from connectors.towers.open_clip import OpenClipVisionConfig
from experiments.config.schema import Config
from experiments.config.sources import resolve_source
from experiments.config.trained import find_trained_model
from llm_adapters.conversation import IMAGE, QUERY
from llm_adapters.processing import find_token_id
from llm_adapters.saved_parts import check_tokenizer

ADVICE = "give a folder that save_pretrained wrote, or a hub id that this machine can reach"


def load_llm(config: Config) -> Any:
    """The pretrained language model, in float32."""
    where = f"llm.source={config.llm.source}"
    source = resolve_source(config.llm.source)
    return load_model(AutoModelForCausalLM, source, where, ADVICE, dtype=torch.float32)


def load_llm_config(source: str) -> PreTrainedConfig:
    """A language model's configuration, without its weights. UsageError for a model of another kind."""
    where = f"llm.source={source}"
    config = load_pretrained(AutoConfig, resolve_source(source), where, ADVICE)
    kind = describe_other_kind(config)
    if kind is not None:
        raise UsageError(
            f"{where}: a model of type {config.model_type}, {kind}; give a decoder-only language model, such "
            "as phi, llama or qwen2"
        )
    return config


def describe_other_kind(config: PreTrainedConfig) -> str | None:
    """What a model is that is no decoder-only language model."""
    if getattr(config, "is_encoder_decoder", False):
        return "which has an encoder and a decoder"
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return "which is no language model"
    # an encoder with a masked language model that is not told to be a decoder sees the words it is to say
    is_encoder = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if is_encoder:
        return "which is an encoder"
    return None


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The LLM's tokenizer with the placeholder, end and padding tokens that conversations need. A trained LLM
    that the cell starts from brings its own."""
    start = config.find_start("finetune")
    if start is not None and "llm" in start.parts:
        folder = find_trained_model(start.source, config.out, start.path)
        tokenizer = read_tokenizer(str(folder), f"{start.path}={start.source}")
    else:
        source = config.llm.source
        tokenizer = read_tokenizer(resolve_source(source), f"llm.source={source}")
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in (config.prompt.end, IMAGE, QUERY) if token not in vocabulary]
    # beside those that it has: without `replace` they would be forgotten
    tokenizer.add_special_tokens({"additional_special_tokens": missing}, replace_extra_special_tokens=False)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = config.prompt.end
    return tokenizer


def read_tokenizer(source: str, where: str) -> PreTrainedTokenizerBase:
    """The tokenizer as it is. UsageError where there is none: transformers makes one without words then."""
    tokenizer = load_pretrained(AutoTokenizer, source, where, ADVICE)
    words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    if not words:
        raise UsageError(
            f"{where}: its tokenizer has no words; save the model's tokenizer into that folder "
            "(tokenizer.save_pretrained)"
        )
    return tokenizer


def check_llm(config: Config, text: PreTrainedConfig) -> None:
    """UsageError for a language model's folder without weights or tokenizer, or with that of another model.
    `text`: its configuration."""
    where = f"llm.source={config.llm.source}"
    check_weight_files(resolve_source(config.llm.source), where)
    tokenizer = load_tokenizer(config)
    # `build_model` makes rows up to the end token
    rows = max(text.get_text_config().vocab_size, find_token_id(tokenizer, config.prompt.end) + 1)
    check_tokenizer(tokenizer, rows, where)


def check_tower(source: str) -> None:
    """UsageError for a tower's folder without weights, or with a damaged image processor."""
    if is_open_clip(source):
        return
    check_weight_files(resolve_source(source), f"tower.source={source}")
    read_saved_preprocessing(resolve_source(source))


@contextmanager
def naming_backbone(where: str) -> Iterator[None]:
    """Errors of a backbone that is built from its configuration become a UsageError that names its source."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    # sizes that a damaged configuration makes up fail anywhere in transformers
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UsageError(
            f"{where}: its config.json describes no model ({shorten_reason(error)}); {ADVICE}"
        ) from error


def load_vision_config(source: str) -> PreTrainedConfig:
    """A tower's configuration, without its weights."""
    if is_open_clip(source):
        name, _ = split_open_clip(source)
        return OpenClipVisionConfig(model_name=name)
    return load_pretrained(AutoConfig, resolve_source(source), f"tower.source={source}", ADVICE)
