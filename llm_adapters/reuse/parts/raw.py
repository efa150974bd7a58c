"""What stands in for a model's own reduction while images are encoded."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from llm_adapters.reuse.families import RawFunction

if TYPE_CHECKING:
    from llm_adapters.reuse.parts.visual_parts import VisualParts


class RawInstead:
    """While images are encoded, patch features instead of the model's own reduction; with a compressor's
    levels and cues beside them in the channels."""

    def __init__(self, parts: "VisualParts", owner: nn.Module, raw: RawFunction):
        self.parts = parts
        self.owner = owner
        self.raw = raw

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        parts = self.parts
        if not parts.is_encoding:
            return original(*args, **kwargs)
        assert parts._raw is not None  # as it says
        features = (*args, *kwargs.values())[0]  # some families give them by name
        levels = []
        base, _ = parts._outside
        patch_features = features
        if parts.family.features is not None:
            patch_features = parts.merge_times(parts._raw[0])
            levels.append(patch_features)
        # at the projector; what comes before it, a method of the base, would have them a second time
        if self.owner is not base:
            patches = patch_features.shape[-2]
            for index in parts._levels.values():
                level = parts.merge_times(parts._raw[index])[..., -patches:, :]  # CLS comes first
                levels.append(level.reshape(*patch_features.shape[:-1], -1))
            cues = parts.cue_reader.compute_cues()
            if cues:
                parts._tower_dtype = features.dtype
            for cue in cues:
                levels.append(cue[..., -patches:, :].reshape(*patch_features.shape[:-1], -1))
        raw: Any = self.raw(self.owner, features, *levels)
        if parts.encoded_kind.keeps_raw:
            parts._kept = raw
            return original(*args, **kwargs)
        return raw


class RawLevel(RawInstead):
    """The same at a merger of DeepStack, which later levels come after, and where frames are pooled before
    the projector."""

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.parts.is_encoding:
            return original(*args, **kwargs)
        return self.raw(self.owner, args[0])
