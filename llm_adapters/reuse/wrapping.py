"""Methods of a model wrapped in place: no key of its state dict changes, and all of it can be undone."""

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from threading import RLock
from typing import Any, Protocol, cast
from uuid import uuid4

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from compressors.errors import UsageError

# the arguments of a forward by position and by name, as torch's hooks get them and give them back
Args = tuple[Any, ...]
Kwargs = dict[str, Any]
HookResult = tuple[Args, Kwargs]
# the attribute of the model that holds what is attached, and the prefix of that in its state dict
PARTS_ATTRIBUTE = "slothkit"
# what configurations call the id of the placeholder that visual tokens are put in the place of
IMAGE_TOKEN_NAMES = ("image_token_id", "image_token_index")
VIDEO_TOKEN_NAMES = ("video_token_id", "video_token_index")
# the attribute in which accelerate keeps the forward of a module that it places or offloads
OFFLOADED_FORWARD = "_old_forward"
# arguments that a decorator takes from a forward, which does not name them
DECORATED_NAMES = ("return_dict", "past_key_values")
OWN_PREFIX = "slothkit_"  # of what is handed through a model for what is put into it
ENCODING_LOCK = RLock()
VIDEO_TYPE = 2  # in the `mm_token_type_ids` of processors


class ImageEncoder(Protocol):
    """What a multimodal model of transformers, without its language modeling head, has beside what all models
    have: each family defines these methods for itself. Those without videos lack `get_video_features`."""

    def forward(self, *args: Any, **kwargs: Any) -> Any: ...

    def get_image_features(self, *args: Any, **kwargs: Any) -> ModelOutput: ...

    def get_video_features(self, *args: Any, **kwargs: Any) -> ModelOutput: ...


class WrappedMethod:
    """`around(original, *args)` in the place of `original`, with the original's signature, which `generate`
    reads. An object, not a closure: copies of a model get their own.

    key     of the wrapping that it is of
    """

    def __init__(self, around: Callable[..., Any], original: Callable[..., Any], key: str):
        self.around = around
        self.original = original
        self.key = key

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.original)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.around(self.original, *args, **kwargs)


class Wrapping:
    """What was wrapped, by a key that copies of it have, too, and the handles of hooks."""

    def __init__(self) -> None:
        self.key = uuid4().hex
        self.added: list[tuple[object, str]] = []  # owner, name of the method
        self.handles: list[RemovableHandle] = []

    def wrap_method(self, owner: object, name: str, around: Callable[..., Any]) -> None:
        """`owner.name` becomes `around(original, ...)`."""
        name = find_own_name(owner, name)
        setattr(owner, name, WrappedMethod(around, getattr(owner, name), self.key))

    def add_method(self, owner: object, name: str, method: Callable[..., Any]) -> None:
        """`owner.name`, which it has not, becomes `method`."""
        self.added.append((owner, name))
        setattr(owner, name, method)

    def unwrap_all(self, model: nn.Module) -> None:
        """All methods of a model as they were, and no hooks; of copies of its modules, too, as PEFT's
        `modules_to_save` makes them."""
        for handle in self.handles:
            handle.remove()
        for owner, name in self.added:
            delattr(owner, name)
        for module in model.modules():
            for handle in self.handles:  # a copy's hooks have the same numbers
                module._forward_hooks.pop(handle.id, None)
                module._forward_pre_hooks.pop(handle.id, None)
            for name in list(vars(module)):
                self._unwrap_method(module, name)
        self.added = []
        self.handles = []

    def _unwrap_method(self, module: nn.Module, name: str) -> None:
        """An attribute of a module without what is of this wrapping, perhaps twice. Another model's may be
        around it, where both have the module."""
        outer: WrappedMethod | None = None
        method = vars(module)[name]
        while isinstance(method, WrappedMethod):
            if method.key != self.key:
                outer = method
            elif outer is not None:
                outer.original = method.original
            else:
                delattr(module, name)
                if getattr(module, name, None) != method.original:  # most have it from their class
                    setattr(module, name, method.original)
            method = method.original


def find_own_name(owner: object, name: str) -> str:
    """The name of an owner's method, where it is that of the model and not accelerate's."""
    if name == "forward" and OFFLOADED_FORWARD in vars(owner):  # PEFT makes accelerate's own anew
        return OFFLOADED_FORWARD
    return name


def is_wrapped(owner: object, name: str) -> bool:
    """Whether `owner.name` is wrapped, by whatever it is."""
    return isinstance(vars(owner).get(find_own_name(owner, name)), WrappedMethod)


def copy_attached(attached: Any, base: nn.Module, model: nn.Module, memo: dict[int, Any]) -> Any:
    """What `copy.deepcopy` makes of something that is attached to a model, and to the base in it: with the
    model, a copy. Where modules of the model are copied without it, as PEFT's `modules_to_save` does, it acts
    in these as well, and so is the same."""
    with_model = id(model) in memo or id(base) in memo
    if not with_model and any(id(module) in memo for module in base.modules()):
        return attached
    copied = object.__new__(type(attached))
    memo[id(attached)] = copied
    vars(copied).update(copy.deepcopy(vars(attached), memo))
    return copied


def encode_pixels(base: ImageEncoder, kwargs: Kwargs, options: Kwargs | None = None) -> Kwargs:
    """Arguments of a model's forward, with its images and videos gone through the tower as `generate` does it
    on its own: `mm_encoder_outputs` in the place of `pixel_values` and `pixel_values_videos`. Unchanged
    before transformers 5.18, whose models take no such argument, and for videos that no method encodes.
    `options`: as in `call_with_known_names`."""
    takes_outputs = "mm_encoder_outputs" in inspect.signature(base.forward).parameters
    has_images = kwargs.get("pixel_values") is not None
    has_videos = kwargs.get("pixel_values_videos") is not None
    encodes_videos = hasattr(base, "get_video_features")
    if not takes_outputs or not (has_images or has_videos) or (has_videos and not encodes_videos):
        return kwargs
    outputs = dict(kwargs.get("mm_encoder_outputs") or {})
    encoded = dict(kwargs)
    # the model takes both as they are, or neither
    if has_images:
        outputs["image"] = call_with_known_names(base.get_image_features, kwargs, options)
        encoded["pixel_values"] = None
    if has_videos:
        outputs["video"] = call_with_known_names(base.get_video_features, kwargs, options)
        encoded["pixel_values_videos"] = None
    encoded["mm_encoder_outputs"] = outputs
    return encoded


def call_with_known_names(
    encode: Callable[..., ModelOutput], kwargs: Kwargs, options: Kwargs | None = None
) -> ModelOutput:
    """What `get_image_features` or its like makes of those arguments of a forward that it takes by name, and
    of `options`, which `list_tower_options` gives."""
    names = inspect.signature(encode).parameters
    arguments = {name: value for name, value in kwargs.items() if name in names}
    return encode(**{**(options or {}), **arguments, "return_dict": True})


def list_tower_options(base: ImageEncoder, kwargs: Kwargs) -> Kwargs:
    """Those of a forward's arguments that it does not name, which may be its tower's."""
    names = inspect.signature(base.forward).parameters
    options = {}
    for name, value in kwargs.items():
        if name not in names and name not in DECORATED_NAMES and not name.startswith(OWN_PREFIX):
            options[name] = value
    return options


def check_placeholders(is_placeholder: Tensor, has_pixels: bool, word: str = "image") -> None:
    """UsageError for a prompt whose placeholders, of images or videos, come without these, as transformers'
    chunked prefill had it before 5.18. A single token may be a placeholder that the model has said itself."""
    if has_pixels or is_placeholder.shape[1] == 1:
        return
    if is_placeholder.any():
        argument = "pixel_values" if word == "image" else "pixel_values_videos"
        raise UsageError(
            f"the text has {int(is_placeholder.sum())} {word} placeholders but no {word}s came with it; "
            f"give {argument}, and generate without prefill_chunk_size"
        )


def check_count(word: str, placeholders: int, tokens: int) -> None:
    """UsageError for placeholders that are not as many as the visual tokens; `word` is image or video."""
    if placeholders and not tokens:
        raise UsageError(
            f"`generate` of transformers has lost the {word}s of {placeholders} placeholders as it repeated "
            "rows, as it does where videos have the placeholders of images; leave out num_beams and "
            "num_return_sequences"
        )
    if placeholders != tokens:
        raise UsageError(
            f"the text has {placeholders} {word} placeholders but its {word}s make {tokens} visual "
            "tokens; make inputs with the processor that was given to `attach`, and choose "
            "a scale by reuse.pick"
        )


def count_beams(is_visual: Tensor, tokens: int) -> int:
    """How many rows `generate` has made of each row of a prompt, whose images and videos have so many
    visual tokens: all placeholders (B, T) over these."""
    return max(1, int(is_visual.sum()) // max(1, tokens))


def locate_units(is_visual: Tensor, counts: Sequence[int]) -> list[tuple[int, int]]:
    """(row, column) of the first placeholder of each image, crop or video, which have so many each, in the
    order of the batch."""
    starts = list(accumulate(counts[:-1], initial=0))
    firsts: list[tuple[int, int]] = [(row, column) for row, column in is_visual.nonzero()[starts].tolist()]
    return firsts


def split_placeholders(ids: Tensor, config: Any, types: Tensor | None) -> tuple[Tensor, Tensor]:
    """Where ids (B, T) are placeholders of images and of videos. `types` (B, T), the processor's
    `mm_token_type_ids`, tell them apart where both have one id."""
    is_image = ids == read_token_id(config, IMAGE_TOKEN_NAMES)
    is_video = ids == read_token_id(config, VIDEO_TOKEN_NAMES)
    if types is not None and types.shape == ids.shape:
        is_video = is_video | (is_image & (types == VIDEO_TYPE))
        is_image = is_image & (types != VIDEO_TYPE)
    return is_image, is_video


def read_token_id(config: Any, names: tuple[str, ...]) -> int:
    """The id by the first of these names that a configuration has; -1 for none."""
    for name in names:
        token_id: int | None = getattr(config, name, None)
        if token_id is not None:
            return token_id
    return -1


def hold_encoding() -> AbstractContextManager[Any]:
    """What parts note while images are encoded is one thread's: others wait, so that a model may serve
    several. A forward that is compiled whole is for one thread, as dynamo enters no lock."""
    if torch.compiler.is_compiling():
        return nullcontext()
    return ENCODING_LOCK


def repeat_outputs(
    model: PreTrainedModel,
    original: Callable[..., Any],  # noqa: ARG001
    *args: Any,
    **kwargs: Any,
) -> Any:
    """How `generate` repeats encoded images for beams in most families, instead of a family's own way."""
    general: Any = GenerationMixin
    return general._expand_multimodal_outputs(model, *args, **kwargs)


def unwrap_peft(model: Any) -> Any:
    """The model in a PeftModel; any other as it is."""
    unwrap: Callable[[], Any] | None = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def is_of_peft(module: nn.Module) -> bool:
    """Whether a module is one that PEFT has put in the place of another."""
    return type(module).__module__.startswith("peft.")


def list_copies(part: nn.Module) -> list[Any]:
    """A part, or where PEFT trains it whole (`modules_to_save`) its original and each adapter's copy."""
    if not is_of_peft(part):
        return [part]
    wrapper: Any = part
    return [wrapper.original_module, *wrapper.modules_to_save.values()]


def find_device(embeddings: nn.Module) -> torch.device:
    """Where a model's embeddings compute. Those that accelerate has offloaded have weights there as they run,
    and none at other times."""
    weight = cast(Tensor, embeddings.weight)
    place = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
    if weight.device.type == "meta" and place is not None:
        return torch.device(place)
    return weight.device


def bind_arguments(function: Callable[..., Any], args: Args, kwargs: Kwargs) -> Kwargs:
    """All arguments of a call by their names."""
    signature = inspect.signature(function)
    bound = signature.bind(*args, **kwargs).arguments
    # what **kwargs collects stands beside the named arguments, whatever a family calls it
    collected: Kwargs = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            collected = bound.pop(name, {})
    return {**bound, **collected}
