"""The LLM's part of a forward pass: logits and loss, the loss of answer tokens alone, or hidden states."""

from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from compressors.errors import UsageError
from llm_adapters.answers import (
    AnswerOutput,
    Lesson,
    can_split_head,
    compute_answer_loss,
    take_answer_states,
)


class WantedOutput(NamedTuple):
    """What a forward pass is asked for, by the names that it has there."""

    labels: Tensor | None
    logits_to_keep: int | Tensor
    answer_index: Tensor | None
    lesson: Lesson | None
    answer_states: bool
    without_head: bool


def run_language_model(
    llm: PreTrainedModel, wanted: WantedOutput, inputs: dict[str, Any]
) -> CausalLMOutputWithPast:
    """The LLM's output for `inputs`, which are its own arguments."""
    output: CausalLMOutputWithPast
    if wanted.without_head:
        output = llm.base_model(**inputs)
        return output
    if wanted.answer_index is not None and wanted.answer_states:
        states = take_answer_states(llm, llm.base_model(**inputs), wanted.answer_index)
        return AnswerOutput(states=states)
    if wanted.answer_index is not None and can_split_head(llm):
        return find_answer_loss(llm, wanted, wanted.answer_index, **inputs)
    if wanted.lesson is not None:
        raise UsageError(
            f"`lesson` is of the logits of `answer_index` alone; give that, too, and a {type(llm).__name__} "
            "without a loss of its router (output_router_logits=False)"
        )
    output = llm(labels=wanted.labels, logits_to_keep=wanted.logits_to_keep, **inputs)
    return output


def find_answer_loss(
    llm: PreTrainedModel,
    wanted: WantedOutput,
    answer_index: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    **inputs: Any,
) -> AnswerOutput:
    """The loss of labels without logits of other positions; `inputs` are the decoder's."""
    if wanted.labels is None:
        raise UsageError("`answer_index` was given without `labels`, whose positions it tells")
    output = llm.base_model(**inputs)
    answers = compute_answer_loss(
        llm, output, wanted.labels, answer_index, num_items_in_batch, lesson=wanted.lesson
    )
    return AnswerOutput(loss=answers.loss, divergence=answers.divergence)
