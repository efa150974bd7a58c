"""What a pruner sees of a prompt, from what the composed model knows."""

import torch
from torch import Tensor

from llm_adapters.conversation import IGNORE
from llm_adapters.pruning.base import Prompt


def make_prompt(
    is_image: Tensor,
    is_text: Tensor,
    length: int,
    attention_mask: Tensor | None,
    labels: Tensor | None,
    embeds: Tensor,
) -> Prompt:
    """is_image, is_text (B, T): visual tokens, and those of questions. The prompt's `length` tokens come
    first; behind them stand generated ones, where no cache is used. `labels` (B, T) ask for answers."""
    order = torch.arange(is_image.shape[1], device=is_image.device)
    real = (order < length).expand_as(is_image)
    if attention_mask is not None and attention_mask.ndim == 2:  # one made before tells nothing of padding
        real = real & attention_mask.bool()
    visual = is_image & real
    last = (order * real).argmax(1, keepdim=True) == order
    given = real
    asks = 1
    if labels is not None:
        is_answer = (labels != IGNORE) & ~is_image  # also where labels are the ids as they are
        given = real & mark_given(is_answer)
        before_answer = mark_answer_starts(is_answer) & real
        last = torch.where(before_answer.any(1, keepdim=True), before_answer, last)
        asks = int(last.sum(1).max())
    return Prompt(
        visual=visual,
        text=is_text & given,
        real=real,
        given=given,
        last=last,
        asks=asks,
        counts=visual.sum(1).tolist(),
        embeds=embeds,
    )


def mark_given(is_answer: Tensor) -> Tensor:
    """(B, T): tokens that stand before an answer and are none; all of a row without any. `is_answer` (B, T).
    What a template puts behind the last answer has read it."""
    answers_from_here = is_answer.flip(1).cumsum(1).flip(1)
    has_none = answers_from_here[:, :1] == 0
    return ~is_answer & ((answers_from_here > 0) | has_none)


def mark_answer_starts(is_answer: Tensor) -> Tensor:
    """(B, T): tokens that are no answer, followed by one that is; `is_answer` (B, T)."""
    nothing_behind = torch.zeros_like(is_answer[:, :1])
    is_answer_next = torch.cat([is_answer[:, 1:], nothing_behind], 1)
    return is_answer_next & ~is_answer


def make_sized_prompt(embeds: Tensor, visual: int) -> Prompt:
    """Rows of which only sizes are known, `visual` tokens of each being visual: for counting FLOPs on
    the meta device."""
    unknown = torch.empty(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    return Prompt(
        visual=unknown,
        text=unknown,
        real=unknown,
        given=unknown,
        last=unknown,
        asks=1,
        counts=[visual] * len(embeds),
        embeds=embeds,
    )
