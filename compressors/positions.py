"""Positions on a grid: the fixed 2-D sine-cosine formula, and a learned table that fits any grid."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

TEMPERATURE = 10000.0


def encode_axis(places: Tensor, width: int) -> Tensor:
    """(N,) places along one axis -> (N, width): sines, then cosines, of width / 2 frequencies."""
    frequencies = width // 2
    steps = torch.arange(frequencies, dtype=torch.float32, device=places.device) / frequencies
    angles = places[:, None].float() * TEMPERATURE**-steps  # (N, width / 2)
    return torch.cat([angles.sin(), angles.cos()], -1)


def encode_grid(rows: Tensor, columns: Tensor, width: int) -> Tensor:
    """Places (H,) and (W,) -> (H, W, width), half of the channels for each axis. `width`: a multiple of 4.

    The same tensor for both axes is encoded once.
    """
    vertical = encode_axis(rows, width // 2)
    horizontal = vertical
    if columns is not rows:
        horizontal = encode_axis(columns, width // 2)
    shape = (len(rows), len(columns), -1)
    return torch.cat([vertical[:, None].expand(shape), horizontal[None].expand(shape)], -1)


class LearnedPositions(nn.Module):
    """A learned table (h, w, C), added to features of any grid, resized bilinearly where the grids differ."""

    def __init__(self, grid: tuple[int, int], dim: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(*grid, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        if features.shape[1:3] == self.table.shape[:2]:
            return features + self.table
        height, width = features.shape[1:3]
        channels_first = rearrange(self.table, "h w c -> 1 c h w")
        resized = F.interpolate(channels_first, (height, width), mode="bilinear")
        return features + rearrange(resized, "1 c h w -> h w c")
