"""Methods of a model wrapped in place: no key of its state dict changes, and all of it can be undone."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers.utils import ModelOutput

from compressors.errors import UsageError


class WrappedMethod:
    """`around(original, *args)` in the place of `original`, with the original's signature, which `generate`
    reads. An object, not a closure: copies of a model get their own."""

    def __init__(self, around: Callable[..., Any], original: Callable[..., Any]):
        self.around, self.original = around, original

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.around(self.original, *args, **kwargs)


class Wrapping:
    """What was wrapped, and the handles of hooks."""

    def __init__(self) -> None:
        self.before: list[tuple[object, str, object]] = []
        self.handles: list[RemovableHandle] = []

    def wrap_method(self, owner: object, name: str, around: Callable[..., Any]) -> None:
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
        self.before = []
        self.handles = []


def encode_pixels(base: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a model's forward, with its images gone through the tower as `generate` does it on its
    own: `mm_encoder_outputs` in the place of `pixel_values`, and of `pixel_values_videos` beside them.
    Unchanged before transformers 5.18, whose models take no such argument."""
    if kwargs.get("pixel_values") is None or not takes_encoded_images(base):
        return kwargs
    outputs = {**(kwargs.get("mm_encoder_outputs") or {}), "image": extract_image_features(base, kwargs)}
    raw: dict[str, Any] = {"pixel_values": None}
    if kwargs.get("pixel_values_videos") is not None:
        outputs["video"] = _extract_features(base.get_video_features, kwargs)
        raw["pixel_values_videos"] = None  # the model takes both as they are, or neither
    return {**kwargs, **raw, "mm_encoder_outputs": outputs}


def takes_encoded_images(base: Any) -> bool:
    return "mm_encoder_outputs" in inspect.signature(base.forward).parameters


def extract_image_features(base: Any, kwargs: dict[str, Any]) -> ModelOutput:
    """What `get_image_features` makes of the arguments of a model's forward."""
    return _extract_features(base.get_image_features, kwargs)


def _extract_features(encode: Callable[..., Any], kwargs: dict[str, Any]) -> ModelOutput:
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


def bind_arguments(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """All arguments of a call by their names."""
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs).arguments
    # what **kwargs collects stands beside the named arguments
    collected: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            collected = bound.pop(name, {})
    return {**bound, **collected}
