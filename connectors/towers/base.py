"""Vision towers: an image of any size -> patch features (B, H, W, C), from transformers or open_clip.

    pixels (B, 3, h, w) -> patches + positions -> block 1 -> ... -> block n + select_layer + 1 -> (B, H, W, C)

Features are a block's raw output: `select_layer=-2`, the penultimate one, is the field's and FlashSloth's.
A tower is built no deeper than that, which is bit-equal to reading hidden state `select_layer` of the full
one. CLS and register tokens, the final norm and the pooling head are dropped.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from compressors.cues import CLS, JOINT, Cue, count_channels, parse_cue
from compressors.errors import UsageError
from connectors.towers.cues import compute_cue, count_heads, find_attention, record_blocks
from connectors.towers.text import ADVICE, TextEncoder
from connectors.versions import switch_checkpointing


def count_blocks(select_layer: int, num_layers: int) -> int:
    """How many of `num_layers` blocks hidden state `select_layer` needs: -1 all, -2 all but one, k > 0: k.

    UsageError when there is no such block; hidden state 0, the patch embedding, is not offered.
    """
    count = select_layer if select_layer > 0 else num_layers + 1 + select_layer
    if not 1 <= count <= num_layers:
        raise UsageError(
            f"select_layer={select_layer}: the vision tower has {num_layers} blocks; "
            f"choose -{num_layers}..-1 or 1..{num_layers}"
        )
    return count


class VisionTower(nn.Module):
    """Base class; `build_tower` and `load_tower` give one. A new tower is trainable until `freeze()`.

    config       the full vision configuration: `build_tower(config, select_layer)` gives the same tower
    dim          C, channels of a patch
    patch_size   side of a patch in pixels
    image_size   native side in pixels; other sizes and shapes interpolate the position embedding
    image_mean, image_std, resample    the preprocessing it expects
    num_layers   blocks of the full tower, n
    depth        blocks built, the hidden state that `forward` returns
    levels       hidden states that `forward(levels=...)` can return, 1..depth
    blocks       the blocks built, in order
    num_prefix   tokens before the patches in a block, CLS and registers
    has_cls      whether the first of them is CLS
    text_encoder    that was trained with it, where `add_text_encoder` has put one
    """

    num_prefix: int = 0
    has_cls: bool = False

    def __init__(
        self,
        backbone: PreTrainedModel,
        config: PreTrainedConfig,
        *,
        num_layers: int,
        select_layer: int,
        dim: int,
        patch_size: int,
        image_size: int,
        image_mean: tuple[float, float, float],
        image_std: tuple[float, float, float],
        resample: str,
    ):
        super().__init__()
        self.backbone, self.config = backbone, config
        self.num_layers, self.select_layer = num_layers, select_layer
        self.depth = count_blocks(select_layer, num_layers)
        self.dim, self.patch_size, self.image_size = dim, patch_size, image_size
        self.image_mean, self.image_std, self.resample = image_mean, image_std, resample
        self.text_encoder: TextEncoder | None = None

    def add_text_encoder(self, encoder: TextEncoder) -> None:
        """Gives the tower the text encoder that was trained with it, for the cue `joint`. UsageError for that
        of a tower of another width."""
        if encoder.patch_dim != self.dim:
            raise UsageError(
                f"the text encoder was trained with a tower of {encoder.patch_dim} channels, this one has "
                f"{self.dim}; give the checkpoint that the tower is from"
            )
        self.text_encoder = encoder

    @property
    def blocks(self) -> Sequence[nn.Module]:
        raise NotImplementedError

    @property
    def key_dim(self) -> int:
        """Width of a head, d. UsageError for a tower without plain attention."""
        return self.dim // count_heads(find_attention(self.blocks[0]))

    def count_channels(self, levels: Sequence[int], cues: Sequence[str]) -> int:
        """Channels of `extract_features` with these."""
        joint_dim = 0
        if self.text_encoder is not None:
            joint_dim = self.text_encoder.dim
        return count_channels(self.dim, levels, cues, self.key_dim if cues else 0, joint_dim)

    @property
    def levels(self) -> range:
        return range(1, self.depth + 1)

    @property
    def frozen(self) -> bool:
        """No parameter is trained. Read off the parameters, so it cannot disagree with them."""
        return not any(parameter.requires_grad for parameter in self.parameters())

    def grid(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Patch grid (H, W) of an image of `height` x `width` pixels; None: native height, square.

        Pixels beyond the last whole patch are not seen. UsageError for an image smaller than a patch.
        """
        height = self.image_size if height is None else height
        width = height if width is None else width
        if min(height, width) < self.patch_size:
            raise UsageError(f"a {height}x{width} image is smaller than one {self.patch_size}-pixel patch")
        return height // self.patch_size, width // self.patch_size

    def hidden_states(self, pixel_values: Tensor, indices: Sequence[int]) -> list[Tensor]:
        """Raw outputs of the blocks 1 <= index <= depth, each (B, prefix + H * W, C)."""
        raise NotImplementedError

    def forward(self, pixel_values: Tensor, levels: Sequence[int] | None = None) -> Tensor | list[Tensor]:
        """(B, 3, h, w) -> (B, H, W, C). With `levels`, hidden states of the full tower (-2, -5): a list.

        A frozen tower keeps no graph. UsageError for a level deeper than what was built.
        """
        height, width = self.grid(*pixel_values.shape[-2:])
        indices = [self.depth]
        if levels is not None:
            indices = [self._level(level) for level in levels]
        graph = torch.is_grad_enabled() and (pixel_values.requires_grad or not self.frozen)
        with torch.set_grad_enabled(graph):
            states = self.hidden_states(pixel_values, indices)
        # CLS and register tokens come first
        maps = [rearrange(x[:, -height * width :], "b (h w) c -> b h w c", h=height) for x in states]
        return maps[0] if levels is None else maps

    def extract_features(
        self, pixel_values: Tensor, levels: Sequence[int], cues: Sequence[str] = ()
    ) -> Tensor:
        """(B, 3, h, w) -> (B, H, W, (1 + L) C + cues): the output, `levels` and `cues` beside it, in the
        channels, for a compressor that needs them (`compressors/cues.py` says what cues there are). With cues
        in float32 at least, whatever the tower is in, and without autocast: scores tie in half precision."""
        if not cues and not levels:
            return self(pixel_values)
        if not cues:
            return torch.cat(self(pixel_values, [self.depth, *levels]), -1)
        parsed_cues = [parse_cue(cue) for cue in cues]
        blocks = {}
        for cue in parsed_cues:
            if cue.kind == JOINT:  # is made of the output, not in a block
                continue
            number = self._find_cue_block(cue)
            blocks[number] = self.blocks[number - 1]
        with record_blocks(blocks) as (inputs, outputs):
            features = self.extract_features(pixel_values, levels)
        height = features.shape[1]
        maps = [features]
        graph = torch.is_grad_enabled() and features.requires_grad
        for cue in parsed_cues:
            if cue.kind == JOINT:
                maps.append(self._require_text_encoder(JOINT).project_patches(features[..., : self.dim]))
                continue
            number = self._find_cue_block(cue)
            attention = find_attention(blocks[number])
            with torch.set_grad_enabled(graph):
                channels = compute_cue(
                    cue, attention, inputs[number], outputs[number], self.num_prefix, self.has_cls
                )
            maps.append(rearrange(channels, "b (h w) c -> b h w c", h=height))
        return torch.cat(maps, -1)  # in the widest of their types

    def check_needs(self, levels: Sequence[int], cues: Sequence[str] = ()) -> None:
        """UsageError for a level that was not built, and for a cue that the tower does not have."""
        for level in levels:
            self._level(level)
        for text in cues:
            cue = parse_cue(text)
            if cue.kind == JOINT:
                self._require_text_encoder(text)
                continue
            if cue.kind == CLS and not self.has_cls:
                raise UsageError(f"cue '{text}': this vision tower has no CLS token")
            try:
                number = self._find_cue_block(cue)
            except UsageError as error:
                raise UsageError(f"block={cue.level} (cue '{text}'): {error}") from error
            find_attention(self.blocks[number - 1])

    def _require_text_encoder(self, cue: str) -> TextEncoder:
        """The text encoder; UsageError for a tower without."""
        if self.text_encoder is None:
            raise UsageError(f"cue '{cue}': this vision tower has no text encoder of its own; {ADVICE}")
        return self.text_encoder

    def _find_cue_block(self, cue: Cue) -> int:
        """Number of the block that a cue is of, from 1."""
        return self.depth if cue.level is None else self._level(cue.level)

    def _level(self, level: int) -> int:
        index = level if level > 0 else self.num_layers + 1 + level
        if index not in self.levels:
            deepest = self.depth - self.num_layers - 1
            raise UsageError(
                f"level {level}: this tower was built with select_layer={self.select_layer}; choose "
                f"{-self.num_layers}..{deepest} or 1..{self.depth}"
            )
        return index

    def freeze(self) -> "VisionTower":
        """Train nothing, stay in eval mode whatever the parent does, keep no graph."""
        return self.requires_grad_(False)

    def unfreeze(self) -> "VisionTower":
        """Train every parameter."""
        return self.requires_grad_(True).train()

    def requires_grad_(self, requires_grad: bool = True) -> "VisionTower":
        super().requires_grad_(requires_grad)
        if self.text_encoder is not None:
            nn.Module.requires_grad_(self.text_encoder, False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> "VisionTower":
        return super().train(mode and not self.frozen)

    def gradient_checkpointing_enable(self) -> None:
        """Recompute each block in the backward pass (while training and not frozen)."""
        switch_checkpointing(self.backbone, "enable")

    def gradient_checkpointing_disable(self) -> None:
        switch_checkpointing(self.backbone, "disable")
