"""Methods of a model wrapped in place: no key of its state dict changes, and all of it can be undone."""

import inspect
from collections.abc import Callable

from torch import Tensor, nn
from transformers.utils import ModelOutput

from compressors.errors import UsageError


class WrappedMethod:
    """`around(original, *args)` in the place of `original`, with the original's signature, which `generate`
    reads. An object, not a closure: copies of a model get their own."""

    def __init__(self, around: Callable, original: Callable):
        self.around, self.original = around, original

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args, **kwargs):
        return self.around(self.original, *args, **kwargs)


class Wrapping:
    """What was wrapped, and the handles of hooks."""

    def __init__(self):
        self.before: list[tuple[object, str, object]] = []
        self.handles: list = []

    def wrap_method(self, owner: object, name: str, around: Callable) -> None:
        """`owner.name` becomes `around(original, ...)`."""
        self.before.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, WrappedMethod(around, getattr(owner, name)))

    def unwrap_all(self) -> None:
        """As it was."""
        for handle in self.handles:
            handle.remove()
        for owner, name, before in reversed(self.before):
            delattr(owner, name)
            if before is not None:
                setattr(owner, name, before)
        self.before, self.handles = [], []


def encode_pixels(base: nn.Module, kwargs: dict) -> dict:
    """Arguments of a model's forward, with its images gone through the tower as `generate` does it on its
    own: `mm_encoder_outputs` in the place of `pixel_values`, and of `pixel_values_videos` beside them.
    Unchanged before transformers 5.18, whose models take no such argument."""
    if kwargs.get("pixel_values") is None or not takes_encoded_images(base):
        return kwargs
    outputs = {**(kwargs.get("mm_encoder_outputs") or {}), "image": extract_image_features(base, kwargs)}
    raw = {"pixel_values": None}
    if kwargs.get("pixel_values_videos") is not None:
        outputs["video"] = _extract_features(base.get_video_features, kwargs)
        raw["pixel_values_videos"] = None  # the model takes both as they are, or neither
    return {**kwargs, **raw, "mm_encoder_outputs": outputs}


def takes_encoded_images(base: nn.Module) -> bool:
    return "mm_encoder_outputs" in inspect.signature(base.forward).parameters


def extract_image_features(base: nn.Module, kwargs: dict) -> ModelOutput:
    """What `get_image_features` makes of the arguments of a model's forward."""
    return _extract_features(base.get_image_features, kwargs)


def _extract_features(encode: Callable, kwargs: dict) -> ModelOutput:
    names = inspect.signature(encode).parameters
    return encode(**{k: v for k, v in kwargs.items() if k in names}, return_dict=True)


def check_placeholders(is_image: Tensor, given: bool) -> None:
    """UsageError for a prompt whose placeholders come without images, as transformers' chunked prefill had it
    before 5.18. A single token may be a placeholder that the model has said itself."""
    if not given and is_image.shape[1] > 1 and is_image.any():
        raise UsageError(
            f"the text has {int(is_image.sum())} image placeholders but no images came with it; "
            "give pixel_values, and generate without prefill_chunk_size"
        )


def bind_arguments(function: Callable, args: tuple, kwargs: dict) -> dict:
    """All arguments of a call by their names."""
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs).arguments
    rest = [name for name, each in signature.parameters.items() if each.kind is each.VAR_KEYWORD]
    others = bound.pop(rest[0], {}) if rest else {}
    return {**bound, **others}
