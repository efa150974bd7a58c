"""Greedy answers by generation, as evaluation and validation ask for them."""

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from experiments.stages.finite import FiniteWatch
from llm_adapters.kv_cache import StaticCaches
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.shared_prefix import SharedBatch, generate_behind_prefix, move_inputs


class LogitsWatch(LogitsProcessor):
    """Changes nothing; notes whether the logit that greedy decoding takes is finite."""

    def __init__(self, watch: FiniteWatch):
        self.watch = watch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # noqa: ARG002
        self.watch.note("best logit", scores.amax(-1))  # others may be -inf, of tokens that must not come
        return scores


@torch.no_grad()
def generate_answers(
    model: FlashSlothForConditionalGeneration,
    encoded: dict[str, Tensor] | SharedBatch,
    max_new_tokens: int,
    blank_queries: bool = False,
    watch: FiniteWatch | None = None,
    caches: StaticCaches | None = None,
) -> Tensor:
    """Tokens (B, T) of greedy answers to a batch of `encode_batch`; with `blank_queries` without what the
    query module fetches from the images. `watch` notes the logits; `caches`: of `pick_caches`."""
    processors = LogitsProcessorList()
    if watch is not None:
        processors.append(LogitsWatch(watch))
    options: dict[str, Any] = {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "logits_processor": processors,
    }
    rows = encoded.rows if isinstance(encoded, SharedBatch) else encoded
    if blank_queries:
        # no position is updated: the query tokens stay in the sequence as they come to the module's layer
        rows["query_index"] = rows["query_index"][:, :0]
    if isinstance(encoded, SharedBatch):
        ids = generate_behind_prefix(model, encoded, caches=caches, **options)
    else:
        batch: dict[str, Any] = move_inputs(encoded, model.device)
        if caches is not None:
            batch |= caches.lend_options(rows["input_ids"], options)
        ids = model.generate(**batch, **options)
    return ids[:, rows["input_ids"].shape[1] :]


def decode_answers(processor: FlashSlothProcessor, ids: Tensor) -> list[str]:
    """The words of answers (B, T)."""
    texts = processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def find_cut_answers(model: FlashSlothForConditionalGeneration, ids: Tensor) -> list[bool]:
    """Whether each of the answers (B, T) has no end, so that `max_new_tokens` has cut it."""
    ends = torch.tensor(model.generation_config.eos_token_id, device=ids.device)
    is_cut: list[bool] = (~torch.isin(ids, ends).any(1)).tolist()
    return is_cut
