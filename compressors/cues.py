"""Cues: what a vision tower knows of its patches beside their features. They come along in the channels.

    attention:b   what CLS pays each patch in block b, mean over heads; in a tower without CLS (SigLIP) what
                  the patch receives instead, as `received`                                      1 channel
    received:b    what all tokens, CLS among them, pay the patch on average, mean over heads      1 channel
    keys:b        its key in block b, mean over heads                                             d channels
    cls           CLS's own output, the same at every patch; no tower without CLS has it          C channels
    joint         the patch in the space that the tower's own text encoder was trained to share   E channels

b counts blocks as `select_layer` does (-2: the one whose output `select_layer=-2` gives); without it,
`attention`, `received` and `keys` are of the block whose output the tower gives. Attention is a softmax over
all tokens, so that a map's sum is 1 less what CLS and registers receive.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from compressors.errors import UsageError

ATTENTION = "attention"
RECEIVED = "received"
KEYS = "keys"
CLS = "cls"
JOINT = "joint"
CUE = re.compile(rf"({ATTENTION}|{RECEIVED}|{KEYS})(?::(-?[1-9]\d*))?|{CLS}|{JOINT}")


class Cue(NamedTuple):
    """A cue by its kind. level: of the block it is of; None: the one whose output the tower gives."""

    kind: str
    level: int | None


def parse_cue(text: str) -> Cue:
    """The cue that a compressor asks for; UsageError for one that there is not."""
    match = CUE.fullmatch(text)
    if match is None:
        raise UsageError(
            f"cue '{text}': there are {ATTENTION}[:block], {RECEIVED}[:block], {KEYS}[:block], {CLS} and "
            f"{JOINT}"
        )
    level = match[2]
    return Cue(match[1] or text, None if level is None else int(level))


def count_channels(
    dim: int, levels: Sequence[int], cues: Sequence[str], key_dim: int, joint_dim: int = 0
) -> int:
    """Channels of what a compressor with these needs reads, of a tower of width `dim`, heads of `key_dim`
    and a space of `joint_dim` with its text encoder."""
    widths = {ATTENTION: 1, RECEIVED: 1, KEYS: key_dim, CLS: dim, JOINT: joint_dim}
    channels = dim * (1 + len(levels))
    for cue in cues:
        channels += widths[parse_cue(cue).kind]
    return channels


def split_cues(
    features: Tensor, dim: int, cues: Sequence[str], levels: Sequence[int] = ()
) -> tuple[Tensor, dict[str, Tensor]]:
    """(B, H, W, channels) of a tower of width `dim` -> features (B, H, W, (1 + L) C) with their levels, and
    each cue by its name: attention (B, H, W), keys (B, H, W, d), cls (B, C). UsageError where channels are
    missing. For `joint`, whose width the text tells, there is `compressors/relevance.py`."""
    kinds = [parse_cue(cue).kind for cue in cues]
    expected = count_channels(dim, levels, cues, 0)
    key_channels = features.shape[-1] - expected
    key_dim = key_channels // max(1, kinds.count(KEYS))
    if key_dim * kinds.count(KEYS) != key_channels or (KEYS in kinds) != (key_dim > 0):
        raise UsageError(
            f"features have {features.shape[-1]} channels: expected {dim * (1 + len(levels))} and the cues "
            f"{', '.join(cues)} behind them, as a vision tower's extract_features gives them"
        )
    widths = {ATTENTION: 1, RECEIVED: 1, KEYS: key_dim, CLS: dim}
    start = dim * (1 + len(levels))
    states = features[..., :start]
    maps: dict[str, Tensor] = {}
    for cue, kind in zip(cues, kinds):
        channels = features[..., start : start + widths[kind]]
        start += widths[kind]
        if kind == KEYS:
            maps[cue] = channels
        elif kind == CLS:
            maps[cue] = channels[:, 0, 0]
        else:
            maps[cue] = channels[..., 0]
    return states, maps


def split_patches(features: Tensor, dim: int, cues: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """As `split_cues`, in raster order: patches (B, N, C), attention (B, N), keys (B, N, d)."""
    states, maps = split_cues(features, dim, cues)
    for cue, channels in maps.items():
        if parse_cue(cue).kind != CLS:
            maps[cue] = channels.flatten(1, 2)
    return states.flatten(1, 2), maps
