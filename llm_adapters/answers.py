"""The loss of answer tokens without the logits of all others: most of a training row is images and question,
whose logits cost the head's product, a copy in float32 and gradients, for a loss that ignores them.

The decoder runs once on whole rows. On the hidden states that predict an answer token runs the LLM's own code
behind the decoder (its head, scaling, soft-capping and loss), so that nothing of it is repeated here.
"""

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import ModelOutput

from llm_adapters.conversation import IGNORE

# Where others have put a forward of their own into an LLM: it runs the LLM, not its copy.
WRAPPED_FORWARD = ("forward", "_old_forward", "_hf_hook")
# Logits that are alive at a time, 512 MB of float32. More are computed in pieces, and each again in backward.
MOST_LOGITS = 2**27


class GivenDecoder(nn.Module):
    """In a decoder's place: hands on what the decoder has given already, with other hidden states."""

    def __init__(self, output: ModelOutput, decoder: nn.Module):
        super().__init__()
        self.output = output
        self.given = [decoder]  # in a list: not a part of this one

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.given[0], name)  # Falcon-H1 keeps the factor of its logits there

    @property
    def decoder(self) -> "GivenDecoder":
        """What OPT calls in its base model."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> ModelOutput:
        output = copy.copy(self.output)
        output["last_hidden_state"] = inputs_embeds
        return output


class WithoutHead:
    """A composed model without its language modeling head, as trainers call it that work on logits of their
    own (TRL): a call gives `last_hidden_state`. What else is asked of it is the model's."""

    def __init__(self, model: PreTrainedModel):
        self.model = model

    def __call__(self, **inputs: Any) -> ModelOutput:
        # the class's: a trainer that has put its own forward into the model calls this one from there
        output: ModelOutput = type(self.model).forward(self.model, **inputs, without_head=True)
        return output

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "get_encoder", "set_encoder"):  # which ask the base model before themselves
            raise AttributeError(name)
        return getattr(self.model, name)


def index_answers(labels: Tensor) -> Tensor:
    """Labels (B, T) -> (N,), the positions that predict a labelled token, in the rows one behind the other
    (B * T). On the CPU before training: on a GPU it would wait for the device."""
    predicts = F.pad(labels[:, 1:] != IGNORE, (0, 1))
    return predicts.flatten().nonzero().squeeze(1)


def can_split_head(llm: PreTrainedModel) -> bool:
    """Whether `llm` is a decoder with a head behind it. A mixture of experts that adds the loss of its router
    reads all of the decoder, and is left whole."""
    return llm.base_model is not llm and not getattr(llm.config, "output_router_logits", False)


class AnswerHead:
    """What an LLM has behind its decoder: its head, scaling and soft-capping.

    output   what the decoder has given
    """

    def __init__(self, llm: PreTrainedModel, output: ModelOutput):
        self.twin = copy.copy(llm)  # the same modules but for one, the same parameters
        for name in WRAPPED_FORWARD:
            vars(self.twin).pop(name, None)
        self.twin._modules = {**llm._modules, llm.base_model_prefix: GivenDecoder(output, llm.base_model)}

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states (N, D) -> logits (1, N, V)."""
        logits: Tensor = self.twin(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        return logits


class AnswerStates(NamedTuple):
    """What predicts the answer tokens of rows, one row behind the other.

    hidden       (N, D), as the LLM's head reads them
    head         their logits
    vocabulary   V, logits of a token
    """

    hidden: Tensor
    head: AnswerHead
    vocabulary: int


class Lesson(NamedTuple):
    """What a teacher says of the same answer tokens, and how it counts (Hinton et al., arXiv 1503.02531).

    states        of the teacher, for the same N tokens
    weight        of the divergence in the loss
    temperature   T of both softmaxes; the divergence counts T^2 times, so that its gradients keep their size
    """

    states: AnswerStates
    weight: float
    temperature: float


class AnswerLoss(NamedTuple):
    """Scalars: what is trained on, and the divergence from the teacher in it, before its weight; None without
    a teacher."""

    loss: Tensor
    divergence: Tensor | None


@dataclass
class AnswerOutput(CausalLMOutputWithPast):
    """The output of a pass that computes no logits.

    divergence   scalar, from the teacher, without a gradient of its own; None without a teacher
    states       what a teacher gives, in the place of a loss
    """

    divergence: Tensor | None = None
    states: AnswerStates | None = None


def take_answer_states(llm: PreTrainedModel, output: ModelOutput, answer_index: Tensor) -> AnswerStates:
    """The states at the positions (N,) of `index_answers` in what the LLM's decoder has given."""
    hidden = output["last_hidden_state"].flatten(0, 1)[answer_index]
    return AnswerStates(hidden, AnswerHead(llm, output), llm.get_output_embeddings().weight.shape[0])


def compute_divergence(logits: Tensor, taught_logits: Tensor, temperature: float) -> Tensor:
    """The sum over tokens of KL(teacher || student), a scalar in float32, T^2 times; logits are (..., V).
    What one of them has beyond the other's V is padding of its vocabulary, and left out."""
    shared = min(logits.shape[-1], taught_logits.shape[-1])
    log_probabilities = F.log_softmax(logits[..., :shared].float() / temperature, -1)
    taught = F.log_softmax(taught_logits[..., :shared].float() / temperature, -1)
    divergence = F.kl_div(log_probabilities, taught, reduction="sum", log_target=True)
    return divergence * temperature**2


def compute_answer_loss(
    llm: PreTrainedModel,
    output: ModelOutput,
    labels: Tensor,
    answer_index: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    most_logits: int = MOST_LOGITS,
    lesson: Lesson | None = None,
) -> AnswerLoss:
    """The LLM's own loss of what its decoder has given for rows of `labels` (B, T), with a `lesson` the
    weighted divergence from the teacher beside it.

    answer_index        (N,) as `index_answers` gives it
    num_items_in_batch  what the sums over answer tokens are divided by; None: by their number
    most_logits         that are alive at a time
    """
    states = take_answer_states(llm, output, answer_index)
    targets = labels.flatten()[answer_index + 1]
    if num_items_in_batch is None:
        num_items_in_batch = len(targets)

    def compute_piece_loss(hidden: Tensor, targets: Tensor, taught: Tensor | None = None) -> AnswerLoss:
        logits = states.head(hidden)
        loss: Tensor = llm.loss_function(
            logits=logits,
            labels=None,
            shift_labels=targets.unsqueeze(0),
            vocab_size=logits.shape[-1],
            num_items_in_batch=num_items_in_batch,
        )
        if lesson is None or taught is None:
            return AnswerLoss(loss, None)
        with torch.no_grad():
            taught_logits = lesson.states.head(taught)
        divergence = compute_divergence(logits, taught_logits, lesson.temperature) / num_items_in_batch
        return AnswerLoss(loss + lesson.weight * divergence, divergence.detach())

    vocabulary = states.vocabulary
    rows = [states.hidden, targets]
    if lesson is not None:
        vocabulary += lesson.states.vocabulary
        rows.append(lesson.states.hidden)
    piece = max(1, most_logits // vocabulary)
    if len(targets) <= piece:
        return compute_piece_loss(*rows)
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    for piece_rows in zip(*(tensor.split(piece) for tensor in rows)):
        piece_loss = checkpoint(compute_piece_loss, *piece_rows, use_reentrant=False)
        losses.append(piece_loss.loss)
        if piece_loss.divergence is not None:
            divergences.append(piece_loss.divergence)
    return AnswerLoss(torch.stack(losses).sum(), torch.stack(divergences).sum() if divergences else None)
