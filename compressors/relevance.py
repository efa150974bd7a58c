"""Relevance of patches to the question, by the text encoder that was trained together with the tower."""

import torch
import torch.nn.functional as F
from torch import Tensor

from compressors.base import MaybeTensor
from compressors.errors import UsageError
from compressors.selection import choose_in_float32


def split_joint(features: Tensor, dim: int, text: MaybeTensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, W, channels) -> patches (B, N, dim), the same in the space of text (B, M, E) as the cue `joint`
    has them, (B, N, E), and what comes behind that, (B, N, channels - dim - E). UsageError, with the name of
    the compressor, without text, and where channels are missing."""
    if text is None:
        raise UsageError(f"{name} needs the question's embeddings by the tower's own text encoder")
    joint_dim = text.shape[-1]
    behind = features.shape[-1] - dim - joint_dim
    if behind < 0:
        raise UsageError(
            f"{name}: features have {features.shape[-1]} channels: expected {dim} and the patch in the space "
            f"of the text, {joint_dim} channels, behind them"
        )
    patches, joint, further_channels = features.flatten(1, 2).split([dim, joint_dim, behind], -1)
    return patches, joint, further_channels


def find_texts(text: Tensor, text_mask: MaybeTensor) -> Tensor:
    """Which of (B, M, E) are pieces of a question, (B, M)."""
    if text_mask is None:
        return torch.ones_like(text[..., 0], dtype=torch.bool)
    return text_mask.bool()


@choose_in_float32
def compare_with_text(joint: Tensor, text: Tensor, is_text: Tensor) -> Tensor:
    """The cosine of each patch (B, N, E) with the pieces (B, M, E) of the question that there are, their mean
    (B, N); 0 without any."""
    cosines = F.normalize(joint, dim=-1) @ F.normalize(text.float(), dim=-1).mT  # (B, N, M)
    shares = is_text / is_text.sum(-1, keepdim=True).clamp(min=1)
    return (cosines * shares.unsqueeze(1)).sum(-1)
