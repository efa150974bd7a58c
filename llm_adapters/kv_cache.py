"""KV caches that answers are generated with: one that grows with each token, or one of fixed size, with which
transformers compiles the decoding step on a GPU."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import Cache, StaticCache

from compressors.errors import UsageError
from connectors.versions import CACHE
from llm_adapters.modeling import FlashSlothForConditionalGeneration

CACHE_KINDS = ("auto", "dynamic", "static")
LENGTH_STEP = 64  # tokens that a cache's size is rounded up to, so that few sizes are compiled


class StaticCaches:
    """Caches of fixed size for one batch after another. A compiled step keeps the addresses of the cache that
    it was recorded with, so the same one is lent again as long as it is large enough. One is held at a time.
    """

    def __init__(self, model: FlashSlothForConditionalGeneration):
        self.model = model
        self.cache: StaticCache | None = None
        self.rows = 0
        self.length = 0

    def lend_cache(self, rows: int, length: int) -> StaticCache:
        """An empty cache for `rows` of up to `length` tokens each. What was lent before is gone."""
        length = -(-length // LENGTH_STEP) * LENGTH_STEP
        if self.cache is not None and rows == self.rows and length <= self.length:
            self.cache.reset()
            return self.cache
        self.rows = rows
        self.length = max(length, self.length)
        text_config = self.model.config.get_text_config()
        self.cache = StaticCache(config=text_config, max_cache_len=self.length)
        return self.cache

    def lend_options(self, input_ids: Tensor, options: Mapping[str, Any]) -> dict[str, Cache]:
        """The cache among the arguments of `generate` for a prompt (B, T). `options`: others of them, with
        `max_new_tokens`; nothing where a row becomes several, which have caches of their own."""
        if multiplies_rows(self.model, options):
            return {}
        rows, length = input_ids.shape
        return {CACHE: self.lend_cache(rows, length + options["max_new_tokens"])}


def multiplies_rows(model: FlashSlothForConditionalGeneration, options: Mapping[str, Any]) -> bool:
    """Whether a row becomes several in `generate`, by what is asked for or what the model was saved with."""
    for name in ("num_beams", "num_return_sequences"):
        value = options.get(name, getattr(model.generation_config, name, None))
        if value is not None and value > 1:
            return True
    return False


def pick_caches(
    kind: str, model: FlashSlothForConditionalGeneration, setting: str = "cache"
) -> StaticCaches | None:
    """The caches that a model answers with; None: those that grow, of `generate` itself. `kind` is one of
    `CACHE_KINDS`: `auto` is a fixed size where transformers compiles the decoding step with it. UsageError,
    which names the `setting`, for a fixed size where it cannot be."""
    obstacle = find_static_obstacle(model)
    if kind == "static" and obstacle is not None:
        raise UsageError(f"{setting}=static: {obstacle}; take {setting}=dynamic")
    if kind == "static" or (kind == "auto" and obstacle is None and compiles_decoding(model)):
        return StaticCaches(model)
    return None


def find_static_obstacle(model: FlashSlothForConditionalGeneration) -> str | None:
    """Why there can be no cache of fixed size; None: there can."""
    if model.pruner is not None:
        name = model.pruner.registered_name
        return f"{name} drops tokens between decoder layers, whose caches then differ in length"
    llm = model.language_model
    name = type(llm).__name__
    if llm._is_stateful:
        return f"{name} keeps a state in the place of keys and values"
    text_config = model.config.get_text_config()
    if not StaticCache(config=text_config, max_cache_len=LENGTH_STEP).is_compileable:
        return f"{name} has decoder layers without a cache of fixed size"
    return None


def compiles_decoding(model: FlashSlothForConditionalGeneration) -> bool:
    """Whether transformers compiles a decoding step of this model with a cache of fixed size."""
    return model.device.type == "cuda" and can_compile_step(model)


def can_compile_step(model: FlashSlothForConditionalGeneration) -> bool:
    """Whether a decoding step can be one graph: by the LLM's class, without flash attention, whose lengths
    break it, and without quantised weights that cannot be compiled."""
    llm = model.language_model
    uses_flash = "flash" in (llm.config.get_text_config()._attn_implementation or "")
    quantizer = getattr(model, "hf_quantizer", None)
    is_compileable = quantizer is None or quantizer.is_compileable
    return llm._can_compile_fullgraph and not uses_flash and is_compileable


def fill_cache(cache: StaticCache, prefix: Cache, picture: Tensor) -> None:
    """Put the keys and values of `prefix`, a row a picture, at the beginning of an empty cache, whose rows
    (B,) begin with those of `picture`. All layers of `prefix` hold keys and values of all tokens."""
    layers: list[Any] = prefix.layers  # Any: not every kind of layer has keys and values
    for number, layer in enumerate(layers):
        cache.update(layer.keys[picture], layer.values[picture], number)
