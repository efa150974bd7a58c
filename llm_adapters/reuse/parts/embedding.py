"""Markers of questions in a model whose tables have no rows for them, for a query module."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    LogitsProcessorList,
)
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

from connectors.query_module import QueryModule, read_query_tokens
from connectors.versions import read_cache
from llm_adapters.adapter import CONTEXT
from llm_adapters.conversation import IGNORE
from llm_adapters.kept_turns import GUESSED, check_turn
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.parts.markers import Markers
from llm_adapters.reuse.wrapping import Args, HookResult, Kwargs, Wrapping, bind_arguments

# of `generate`'s: they look for all tokens of the prompt among the scores of words
PROMPT_PROCESSORS = (EncoderRepetitionPenaltyLogitsProcessor, EncoderNoRepeatNGramLogitsProcessor)


def pad_scores(scores: Tensor, last_id: int) -> Tensor:
    """Scores (B, V) -> (B, V or more): -inf at ids up to `last_id` that have none."""
    missing = max(0, last_id + 1 - scores.shape[-1])
    return nn.functional.pad(scores, (0, missing), value=-torch.inf)


class MarkersForbidden(LogitsProcessor):
    """The last of those by which a look-up in the prompt tells what it may guess: no markers."""

    def __init__(self, last_id: int):
        self.last_id = last_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return pad_scores(scores, self.last_id)


class MarkersScored(LogitsProcessor):
    """A processor that gets scores for markers, too, which are cut off again."""

    def __init__(self, processor: LogitsProcessor, last_id: int):
        self.processor = processor
        self.last_id = last_id

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        words = scores.shape[-1]
        changed: Tensor = self.processor(input_ids, pad_scores(scores, self.last_id))
        return changed[:, :words]


class MarkerAdapter:
    """What `VisualParts` does for markers."""

    family: ModelFamily
    markers: Markers | None
    query_module: QueryModule | None
    _wrapping: Wrapping
    _warned_of_labels = False

    def _wrap_id_tables(self, modules: dict[str, nn.Module]) -> None:
        """What looks ids up beside the embeddings has no rows for the markers either."""
        table = modules.get(self.family.per_layer_table or "")
        if self.family.per_layer_table is not None and table is not None:  # some sizes have none
            self._wrapping.wrap_method(table, "forward", self._hide_markers)
        for path in self.family.id_embedders:
            embedder = modules[path]
            self._wrapping.wrap_method(embedder, "forward", partial(self._embed_markers_beyond, embedder))

    def _embed_markers(self, original: Callable[..., Tensor], ids: Tensor) -> Tensor:
        """The LLM's embeddings, which have no rows for the markers."""
        embeds = self._hide_markers(original, ids)
        if ids.ndim != 2:  # the model looks up a placeholder
            return embeds
        return self._place_markers(ids, embeds)

    def _hide_markers(self, original: Callable[..., Tensor], ids: Tensor) -> Tensor:
        """Rows of a table of ids, in which markers are padding."""
        assert self.markers is not None  # wrapped with a query module alone
        return original(ids.masked_fill(self.markers.find_markers(ids), 0))

    def _embed_markers_beyond(
        self,
        embedder: Any,
        original: Callable[..., Tensor],
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """A family's embeddings of ids beyond its words, which the markers' ids are to it."""
        if input_ids is None:
            return original(inputs_embeds=inputs_embeds)
        assert self.markers is not None  # as above
        known = input_ids.masked_fill(self.markers.find_markers(input_ids), embedder.vocab_offset)
        return self._place_markers(input_ids, original(input_ids=known))

    def _place_markers(self, ids: Tensor, embeds: Tensor) -> Tensor:
        """Embeddings (B, T, D) of ids (B, T) with the markers' own."""
        assert self.markers is not None and self.query_module is not None  # as above
        return self.markers.place_embeddings(ids, embeds, read_query_tokens(self.query_module))

    def _forbid_guessed_markers(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """How `generate` guesses words ahead: a look-up in the prompt stops before markers."""
        assert self.markers is not None  # as above
        generator = original(*args, **kwargs)
        if isinstance(generator, PromptLookupCandidateGenerator):
            processors: list[Any] = generator.logits_processor or []
            forbidden = MarkersForbidden(self.markers.last_id)
            generator.logits_processor = LogitsProcessorList([*processors, forbidden])
        return generator

    def _score_markers(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """How `generate` changes scores, by the tokens of the prompt, too."""
        assert self.markers is not None  # as above
        processors: LogitsProcessorList = original(*args, **kwargs)
        for index, processor in enumerate(processors):
            if isinstance(processor, PROMPT_PROCESSORS):
                processors[index] = MarkersScored(processor, self.markers.last_id)
        return processors

    def _check_context_read(
        self,
        base: nn.Module,
        args: Args,  # noqa: ARG002
        kwargs: Kwargs,
        output: object,  # noqa: ARG002
    ) -> None:
        """UsageError for an LLM whose layers never saw the context."""
        if kwargs.get(CONTEXT) is not None:
            kwargs[CONTEXT].check_read(getattr(base, self.family.language_model))

    def _prepare_forward(self, model: nn.Module, args: Args, kwargs: Kwargs) -> HookResult:
        """Refuses a new turn behind a cache. Markers are no words to be learned: the output layer has no rows
        for them."""
        assert self.markers is not None  # hooked with a query module alone
        kwargs = bind_arguments(model.forward, args, kwargs)
        if not kwargs.get(GUESSED, False):
            check_turn(kwargs.get("input_ids"), read_cache(kwargs), self.markers.query_id)
        labels = kwargs.get("labels")
        if labels is not None:
            is_marker = self.markers.find_markers(labels)
            if kwargs.get("num_items_in_batch") is not None:
                self._warn_of_counted_markers(labels, is_marker)
            kwargs["labels"] = labels.masked_fill(is_marker, IGNORE)
        return (), kwargs

    def _warn_of_counted_markers(self, labels: Tensor, is_marker: Tensor) -> None:
        """A warning, once, where markers are among labels (B, T) that a trainer has counted. Its number is
        that of all batches of a step, on all devices, of which a forward sees one: it cannot be put right
        here."""
        assert self.markers is not None  # as above
        if self._warned_of_labels or torch.compiler.is_compiling():
            return
        counted = int(is_marker.sum())
        if not counted:
            return
        self._warned_of_labels = True
        warnings.warn(
            f"{counted} of {int((labels != IGNORE).sum())} labels of a batch are markers of questions, "
            "which are not learned; Trainer counts them (num_items_in_batch), so that the loss is too small: "
            f"in the collator set labels of the ids {self.markers.question_id} and "
            f"{self.markers.query_id} to {IGNORE}",
            stacklevel=2,
        )
