"""The keys of a released FlashSloth checkpoint beside ours, and whether a checkpoint fits a model.

Everything is kept bit for bit but the query tokens. Released code adds the embedding of " ." to them in every
forward pass; ours are what enters the LLM, so that sum, in the checkpoint's own type, is done once
(`fold_queries`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from compressors.errors import UsageError

TOWER, LEVEL = "model.vision_tower.vision_tower.", "vision_model."  # transformers >= 5.6 has no such level
PREFIXES = {  # released: ours
    "model.embed_tokens.": "language_model.model.embed_tokens.",
    "model.layers.": "language_model.model.layers.",
    "model.final_layernorm.": "language_model.model.final_layernorm.",
    "lm_head.": "language_model.lm_head.",
    TOWER: "vision_tower.backbone.",
    "model.pooling.mlp.": "compressor.scorer.",
    "model.mm_projector.": "projector.",
    "model.lqformer.down_projector_learnable_text.": "query_module.blocks.0.down_text.",
    "model.lqformer.down_projector_image.": "query_module.blocks.0.down_image.",
    "model.lqformer.layers.": "query_module.blocks.0.layers.",
    "model.lqformer.up_projector.": "query_module.blocks.0.up.",
    "model.learnable_tokens.token": "query_module.tokens",
}
EMBEDDING, QUERIES = "model.embed_tokens.weight", "model.learnable_tokens.token"
DERIVED = (".rotary_emb.inv_freq", ".embeddings.position_ids")  # older transformers saved what it computes
SHOWN = 3  # keys of each kind that an error names


@dataclass
class Checkpoint:
    """What a released folder says: `values` of its config.json, and tensors by key, without SigLIP's
    `vision_model.` level; `level`: whether the file has it; `notes`: what to tell the user."""

    source: Path
    values: dict
    tensors: dict[str, Tensor]
    level: bool = True
    notes: list[str] = field(default_factory=list)

    def spell(self, key: str) -> str:
        """A key as the file has it."""
        return add_level(key) if self.level else key


def add_level(key: str) -> str:
    """A tower's key with the level that some released files have; other keys as they are."""
    return key.replace(TOWER, TOWER + LEVEL, 1) if key.startswith(TOWER) else key


def remove_level(tensors: Mapping[str, Tensor], source: Path) -> tuple[dict[str, Tensor], bool]:
    """Tensors in one layout, derived ones left out, and whether the tower's keys had the level."""
    weights = {key: value for key, value in tensors.items() if not key.endswith(DERIVED)}
    tower = [key for key in weights if key.startswith(TOWER)]
    levels = [key for key in tower if key.startswith(TOWER + LEVEL)]
    if levels and len(levels) < len(tower):
        bare_key = next(key for key in tower if key not in levels)
        raise UsageError(f"{source}: the tower's keys have two layouts, {levels[0]} and {bare_key}; keep one")
    plain = {key.replace(TOWER + LEVEL, TOWER, 1): value for key, value in weights.items()}
    return plain, bool(levels) or not tower


def to_ours(key: str) -> str:
    """A released key, without the level, as our model's state dict has it."""
    return _rename_key(key, PREFIXES.items())


def to_released(key: str) -> str:
    """The other way."""
    return _rename_key(key, ((ours, released) for released, ours in PREFIXES.items()))


def _rename_key(key: str, pairs: Iterable[tuple[str, str]]) -> str:
    for old, new in pairs:
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise KeyError(key)


def check_keys(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, torch.Size], source: Path, advice: str = ""
) -> None:
    """UsageError that names every kind of misfit, its first keys and how many there are."""
    missing = [key for key in shapes if key not in tensors]
    unexpected = [key for key in tensors if key not in shapes]
    misshaped = []
    for key, shape in shapes.items():
        if key in tensors and tensors[key].shape != shape:
            misshaped.append(f"{key} {format_shape(tensors[key].shape)} instead of {format_shape(shape)}")
    kinds = {"missing": missing, "unexpected": unexpected, "mis-shaped": misshaped}
    faults = [f"{name}: {list_keys(keys)}" for name, keys in kinds.items() if keys]
    if not faults:
        return
    only_missing = missing and not unexpected and not misshaped
    hint = f"; {advice}" if advice and only_missing else ""
    raise UsageError(f"{source}: does not fit; {'; '.join(faults)}{hint}")


def list_keys(keys: list[str]) -> str:
    """The first few keys, and how many there are."""
    more = f", ... ({len(keys)} in all)" if len(keys) > SHOWN else ""
    return ", ".join(keys[:SHOWN]) + more


def format_shape(size: Iterable[int]) -> str:
    """(64, 96) as 64x96."""
    return "x".join(map(str, size)) or "scalar"


def find_dot_embedding(tensors: Mapping[str, Tensor], token: int, source: Path) -> Tensor:
    """The embedding of the dot token."""
    table = tensors[EMBEDDING]
    if not 0 <= token < len(table):
        raise UsageError(
            f"{source}: dot token {token} is not among the {len(table)} embeddings; set "
            "embq.dot_token_id in config.json"
        )
    return table[token]


def fold_queries(learned: Tensor, dot: Tensor) -> Tensor:
    """What enters the LLM at a query slot: (Q, D) + (D,)."""
    return learned + dot


def unfold_queries(tokens: Tensor, dot: Tensor, learned: Tensor | None = None) -> Tensor:
    """Query tokens as released code has them: the remembered ones if they still give `tokens`, bit for bit,
    else the difference."""
    fits = learned is not None and learned.shape == tokens.shape
    if learned is not None and fits and torch.equal(fold_queries(learned, dot), tokens):
        return learned
    # trained on since: a subtraction does not undo an addition to the last bit
    return (tokens - dot).to(tokens.dtype)
