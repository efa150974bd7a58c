"""The loss of answer tokens without the logits of all others: most of a training row is images and question,
whose logits cost the head's product, a copy in float32 and gradients, for a loss that ignores them.

The decoder runs once on whole rows. On the hidden states that predict an answer token runs the LLM's own code
behind the decoder (its head, scaling, soft-capping and loss), so that nothing of it is repeated here.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from llm_adapters.conversation import IGNORE

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


def compute_answer_loss(
    llm: PreTrainedModel,
    output: ModelOutput,
    labels: Tensor,
    answer_index: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    most_logits: int = MOST_LOGITS,
) -> Tensor:
    """The LLM's own loss, a scalar, of what its decoder has given for rows of `labels` (B, T).

    answer_index        (N,) as `index_answers` gives it
    num_items_in_batch  what the sum over answer tokens is divided by; None: by their number
    most_logits         that are alive at a time
    """
    hidden = output["last_hidden_state"].flatten(0, 1)[answer_index]  # (N, D)
    targets = labels.flatten()[answer_index + 1]
    if num_items_in_batch is None:
        num_items_in_batch = len(targets)
    twin = copy.copy(llm)  # the same modules but for one, the same parameters
    twin._modules = {**llm._modules, llm.base_model_prefix: GivenDecoder(output, llm.base_model)}

    def compute_piece_loss(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = twin(inputs_embeds=hidden.unsqueeze(0), use_cache=False).logits
        loss: Tensor = llm.loss_function(
            logits=logits,
            labels=None,
            shift_labels=targets.unsqueeze(0),
            vocab_size=logits.shape[-1],
            num_items_in_batch=num_items_in_batch,
        )
        return loss

    vocabulary = llm.get_output_embeddings().weight.shape[0]
    piece = max(1, most_logits // vocabulary)
    if len(targets) <= piece:
        return compute_piece_loss(hidden, targets)
    losses = []
    for piece_hidden, piece_targets in zip(hidden.split(piece), targets.split(piece)):
        losses.append(checkpoint(compute_piece_loss, piece_hidden, piece_targets, use_reentrant=False))
    return torch.stack(losses).sum()
