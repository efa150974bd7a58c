"""Tokenizer and processor of a released FlashSloth checkpoint <-> ours: `<learnable>` is our `<query>`, under
its id."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from compressors.errors import UsageError
from connectors.pretrained import load_pretrained
from llm_adapters.conversation import IMAGE, QUERY, Template
from llm_adapters.images import image_processor
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.released.sizes import END_ID

LEARNABLE, END = "<learnable>", Template().end
FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder, if there is one."""
    if not any((folder / name).is_file() for name in FILES):
        return None
    where = f"{folder}: its tokenizer"
    return load_pretrained(AutoTokenizer, folder, where, "save it there again, or remove it")


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int, source: Path) -> PreTrainedTokenizerBase:
    """With `<query>`, `</s>` and `<image>`: no token's id changes, and new ones come last, in this order, so
    that phi-2's own tokenizer gets the released ids 50295 and 50296. `rows`: embeddings there are."""
    if LEARNABLE in tokenizer.get_vocab():
        tokenizer = rename_token(tokenizer, LEARNABLE, QUERY)
    plain = [token for token in (QUERY, END, IMAGE) if token not in tokenizer.all_special_tokens]
    if plain:  # unknown, or known as words like any other
        tokenizer.add_special_tokens({"additional_special_tokens": plain}, replace_extra_special_tokens=False)
    end_id = tokenizer.convert_tokens_to_ids(END)
    assert isinstance(end_id, int)  # it was added
    if end_id >= rows:
        raise UsageError(
            f"{source}: the tokenizer's {END} is beyond the {rows} embeddings of the weights; "
            "they do not belong together"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = END
    return tokenizer


def rename_token(tokenizer: PreTrainedTokenizerBase, old: str, new: str) -> PreTrainedTokenizerBase:
    """The same tokenizer with a token of another name and the same id."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in state["added_tokens"]:
        if token["content"] == old:
            token["content"] = new
    vocabulary = state["model"].get("vocab")
    if isinstance(vocabulary, dict) and old in vocabulary:
        vocabulary[new] = vocabulary.pop(old)
    extra = [new if token == old else token for token in tokenizer.all_special_tokens]
    roles = {role: getattr(tokenizer, role) for role in ROLES}
    extra = [token for token in extra if token not in roles.values()]
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        additional_special_tokens=extra,
        model_max_length=tokenizer.model_max_length,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in roles.items() if token is not None},
    )
    setattr(copy, "add_bos_token", getattr(tokenizer, "add_bos_token", False))  # noqa: B010  mypy: read-only
    return copy


def count_embeddings(model: FlashSlothForConditionalGeneration) -> int:
    """Rows of the LLM's embedding table."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)  # phi's
    return embeddings.num_embeddings


def give_ids(model: FlashSlothForConditionalGeneration, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Placeholders and the token that ends an answer. Without a tokenizer the released ids, and an image
    placeholder just beyond the vocabulary."""
    config = model.config
    rows = count_embeddings(model)
    end: Any
    pad = None
    if tokenizer is None:
        config.image_token_id = rows
        end = END_ID if rows > END_ID else None
    else:
        config.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        config.query_token_id = tokenizer.convert_tokens_to_ids(QUERY)
        end = tokenizer.convert_tokens_to_ids(END)
        pad = tokenizer.pad_token_id
    if pad is None:
        pad = end
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=pad)


def make_processor(
    model: FlashSlothForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, tiles: int
) -> FlashSlothProcessor:
    """SigLIP's preprocessing and FlashSloth's prompt."""
    images = image_processor(model.vision_tower)
    return FlashSlothProcessor(
        images,
        tokenizer,
        image_tokens=model.num_image_tokens(),
        tiles=tiles,
        num_queries=model.num_queries,
        prompt=model.config.prompt,
    )
