"""Questions as the tower's own text encoder has them, for compressors that compare patches with them."""

from typing import NamedTuple

import torch
from torch import Tensor

from compressors.base import MaybeTensor
from compressors.errors import UsageError
from connectors.towers.text import TextEncoder


class TurnQuestions(NamedTuple):
    """Of rows with R turns at most, whose questions have M pieces at most: `ids` (B, R, M, L) by the
    tokenizer of the tower's text encoder, and `mask` (B, R, M), True where there is a piece."""

    ids: Tensor
    mask: Tensor


def gather_questions(ids: MaybeTensor, mask: MaybeTensor) -> TurnQuestions | None:
    """Both, or None where a processor has given none."""
    if ids is None:
        return None
    if mask is None:
        mask = torch.ones(ids.shape[:-1], dtype=torch.bool, device=ids.device)
    return TurnQuestions(ids, mask.bool())


def embed_questions(
    encoder: TextEncoder | None, questions: TurnQuestions | None, image_turn: Tensor
) -> tuple[Tensor, Tensor]:
    """The pieces of the question of the turn that each image (B, I) stands in: (B * I, M, E), and which of
    them there are (B * I, M). UsageError where the model has no text encoder or the processor gave no
    questions."""
    if encoder is None or questions is None:
        raise UsageError(
            "the compressor compares patches with the question by the tower's own text encoder, but no "
            "`question_ids` were given; make inputs with the model's own processor"
        )
    embedded = encoder.encode_text(questions.ids.flatten(0, 2))
    of_turn = embedded.unflatten(0, questions.mask.shape)  # (B, R, M, E)
    turns = of_turn.shape[1]
    index = (image_turn - 1).clamp(0, turns - 1)  # turn 0 fills rows with fewer images
    text = torch.take_along_dim(of_turn, index[:, :, None, None], 1)  # (B, I, M, E)
    is_asked = torch.take_along_dim(questions.mask, index.unsqueeze(-1), 1)
    has_turn = (image_turn > 0) & (image_turn <= turns)
    return text.flatten(0, 1), (is_asked & has_turn.unsqueeze(-1)).flatten(0, 1)
