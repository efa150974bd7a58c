"""Cues of a model's own vision tower (attention, keys, CLS), for compressors that choose patches by them.

They are computed as for this project's towers (`connectors/towers/cues.py`): once more, from what goes into
the blocks that are asked. So the tower's own attention may be eager, sdpa or another.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import PreTrainedModel

from compressors.base import Compressor
from compressors.cues import CLS, JOINT, Cue, parse_cue
from compressors.errors import UsageError
from connectors.towers.cues import compute_cue, find_attention, record_blocks
from connectors.towers.huggingface import FAMILIES as TOWERS
from llm_adapters.reuse.families import ModelFamily

# whose attention has neither positions nor a mask of its own, by the `model_type` of their configuration
TOWERS_WITH_CUES = ("clip_vision_model", "siglip_vision_model")
ADVICE = "choose a compressor that reads the features alone, such as divprune"


@dataclass
class CueReader:
    """Reads cues while images are encoded.

    cues      each with the number of its block
    blocks    paths below the base of the tower's, by their numbers from 1: PEFT may put copies there
    has_cls   whether a token of the tower comes before the patches
    layer     the hidden state that the features are
    """

    cues: list[tuple[Cue, int]] = field(default_factory=list)
    blocks: dict[int, str] = field(default_factory=dict)
    has_cls: bool = False
    layer: int | None = None
    # the blocks; of each what has gone into its attention and what has come out, (n, tokens, C)
    _states: tuple[dict[int, nn.Module], dict[int, Tensor], dict[int, Tensor]] | None = None

    @contextmanager
    def record(self, base: nn.Module) -> Iterator[None]:
        """While it is open, the forward pass of the base's tower is recorded."""
        blocks = {number: base.get_submodule(path) for number, path in self.blocks.items()}
        with record_blocks(blocks) as (inputs, outputs):
            self._states = blocks, inputs, outputs
            try:
                yield
            finally:
                self._states = None

    def check_layer(self, layer: object) -> None:
        """UsageError for a call that asks for features of another hidden state than the cues of their block
        were looked up for; None: for those of the configuration."""
        if layer in (None, self.layer):
            return
        if any(cue.level is None for cue, _ in self.cues):
            raise UsageError(
                f"vision_feature_layer={layer}: the compressor reads cues of the block that gives the "
                f"features, vision_feature_layer={self.layer} as it was attached; set it in the "
                "configuration before that"
            )

    def compute_cues(self) -> list[Tensor]:
        """Each cue of the recorded pass (n, tokens, channels), as a hidden state of the tower: where CLS
        stands are zeros. In float32 whatever the tower is in, and without autocast, as scores tie in half
        precision."""
        if self._states is None:
            return []
        blocks, inputs, outputs = self._states
        cues = []
        for cue, number in self.cues:
            output = outputs[number]
            attention = find_attention(blocks[number])
            graph = torch.is_grad_enabled() and output.requires_grad
            with torch.set_grad_enabled(graph):
                channels = compute_cue(
                    cue, attention, inputs[number], output, int(self.has_cls), self.has_cls
                )
            cues.append(pad(channels, (0, 0, int(self.has_cls), 0)))
        return cues


def make_cue_reader(family: ModelFamily, base: PreTrainedModel, part: Compressor, name: str) -> CueReader:
    """For what the compressor `part` of that name asks of the tower; UsageError where it does not give it."""
    if not part.needs_cues:
        return CueReader()
    request = f"compressor '{name}' asks the vision tower for {', '.join(part.needs_cues)}"
    tower = _require_tower(family, base, request)
    assert family.feature_layer is not None  # else there is no such tower
    layer = family.feature_layer(base)
    if not isinstance(layer, int):
        raise UsageError(
            f"{request} of one block, but the features are those of {len(layer)}, "
            f"vision_feature_layer={list(layer)}; {ADVICE}"
        )
    has_cls = TOWERS[tower.config.model_type].has_cls
    tower_blocks = family.blocks(tower)
    output_number = find_block_number(layer, len(tower_blocks), f"vision_feature_layer={layer}")
    cues = []
    for text in part.needs_cues:
        cue = parse_cue(text)
        if cue.kind == JOINT:  # made of the features (`questions.py`)
            continue
        if cue.kind == CLS and not has_cls:
            raise UsageError(
                f"compressor '{name}': cue '{text}': a {tower.config.model_type} tower has no CLS token; "
                "choose knobs that leave it out"
            )
        number = output_number
        if cue.level is not None:
            number = find_block_number(cue.level, len(tower_blocks), f"block={cue.level} (cue '{text}')")
        cues.append((cue, number))
    paths = {module: path for path, module in base.named_modules()}
    blocks = {number: paths[tower_blocks[number - 1]] for _, number in cues}
    return CueReader(cues, blocks, has_cls, layer)


def _require_tower(family: ModelFamily, base: PreTrainedModel, request: str) -> PreTrainedModel:
    """A family's tower, of a kind that gives cues; UsageError for another, and for a family that does not say
    which of its hidden states the features are."""
    tower = base.get_submodule(family.tower)
    config = getattr(tower, "config", None)  # a package's family may have any module there
    tower_kind = getattr(config, "model_type", type(tower).__name__)
    if tower_kind not in TOWERS_WITH_CUES:
        raise UsageError(
            f"{request}, which are read from a {' or '.join(TOWERS_WITH_CUES)}, not from the '{tower_kind}' "
            f"of this model; {ADVICE}"
        )
    if family.feature_layer is None:
        raise UsageError(
            f"{request}, but for models of type '{base.config.model_type}' nothing says which hidden state "
            f"their features are (feature_layer of a ModelFamily); {ADVICE}"
        )
    assert isinstance(tower, PreTrainedModel)  # as all of these kinds
    return tower


def find_block_number(level: int, count: int, source: str) -> int:
    """The block, from 1, whose output is hidden state `level` of a tower of `count` blocks (-1: the last);
    UsageError, which names where `level` came from, where there is none."""
    number = level if level > 0 else count + 1 + level
    if not 1 <= number <= count:
        raise UsageError(f"{source}: the tower has {count} blocks; choose {-count}..-1 or 1..{count}")
    return number
