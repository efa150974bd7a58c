"""Questions as the tower's own text encoder has them, for compressors that compare patches with them."""

from typing import NamedTuple

import torch
from torch import Tensor

from compressors.base import MaybeTensor
from compressors.errors import UsageError
from connectors.towers.text import TextEncoder


class TurnQuestions(NamedTuple):
    """Of rows with R turns at most: `ids` (B, R, L) by the tokenizer of the tower's text encoder, and `mask`
    (B, R), True where a turn has a question."""

    ids: Tensor
    mask: Tensor


def gather_questions(ids: MaybeTensor, mask: MaybeTensor) -> TurnQuestions | None:
    """Both, or None where a processor has given none."""
    if ids is None:
        return None
    if mask is None:
        mask = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device)
    return TurnQuestions(ids, mask.bool())


def embed_questions(
    encoder: TextEncoder | None, questions: TurnQuestions | None, image_turn: Tensor
) -> tuple[Tensor, Tensor]:
    """The question of the turn that each image (B, I) stands in: (B * I, 1, E), and whether there is one
    (B * I, 1). UsageError where the model has no text encoder or the processor gave no questions."""
    if encoder is None or questions is None:
        raise UsageError(
            "the compressor compares patches with the question by the tower's own text encoder, but no "
            "`question_ids` were given; make inputs with the model's own processor"
        )
    embedded = encoder.encode_text(questions.ids.flatten(0, 1))
    of_turn = embedded.unflatten(0, questions.mask.shape)  # (B, R, E)
    index = (image_turn - 1).clamp(0, of_turn.shape[1] - 1)  # turn 0 fills rows with fewer images
    text = torch.take_along_dim(of_turn, index.unsqueeze(-1), 1)  # (B, I, E)
    is_asked = questions.mask.gather(1, index) & (image_turn > 0) & (image_turn <= of_turn.shape[1])
    return text.flatten(0, 1).unsqueeze(1), is_asked.flatten().unsqueeze(1)
