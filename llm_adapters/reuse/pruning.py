"""In-LLM pruners in a multimodal model of transformers, as it is or with a compressor attached: any model
that merges visual tokens into the sequence of a language model with attention in every layer.

    reuse.prune(model, "fastv", ratio=0.5)
    model.generate(**inputs)
    reuse.prune(model, None)                       # as it was before

It is saved with a compressor that is attached, too. All text of the prompt counts as the question where
nothing marks one. The prompt is what `generate` was given; in a forward pass with labels, what no label asks
for; in one without them, all tokens, the last of which is what the answer starts from.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from compressors.errors import UsageError
from connectors.versions import CACHE, read_cache
from llm_adapters.adapter import llm_sizes
from llm_adapters.kept_positions import count_positions
from llm_adapters.pruning.apply import WHOLE_PROMPT, PruningAdapter, check_cache_empty
from llm_adapters.pruning.attention import PRUNING_CONTEXT
from llm_adapters.pruning.base import Pruner, registry
from llm_adapters.pruning.calibration import calibrate_recipe, list_batches
from llm_adapters.pruning.deepstack import take_deepstack
from llm_adapters.pruning.fitprune import FitPrune
from llm_adapters.pruning.prompt import make_prompt
from llm_adapters.reuse.language_models import find_language_model
from llm_adapters.reuse.wrapping import (
    PARTS_ATTRIBUTE,
    Args,
    HookResult,
    Kwargs,
    Wrapping,
    bind_arguments,
    check_placeholders,
    copy_attached,
    encode_pixels,
    hold_encoding,
    split_placeholders,
    unwrap_peft,
)

PRUNING_ATTRIBUTE = "slothkit_pruning"  # the attribute of the model that holds its `ModelPruning`
LABELS_KEY = "slothkit_labels"  # from the model's forward to that of the model without its head
PROMPT_KEY = "slothkit_asked"  # from there to its language model's
# Whose `generate` runs, and the tokens of its prompt: without a cache, and where tokens are guessed, others
# come behind them. A thread has its own, so that one model may serve several.
RUNNING_PROMPT: ContextVar[tuple["ModelPruning", int] | None] = ContextVar("slothkit_prompted", default=None)


def prune(
    model: PreTrainedModel,
    name: str | None,
    *,
    calibrate_on: Iterable[Mapping[str, Tensor]] | Mapping[str, Tensor] = (),
    **knobs: Any,
) -> None:
    """Drop visual tokens inside the LLM from now on, as the pruner `name` does with its `knobs`; None: none.

    A pass outside of `generate` takes all of its tokens as the prompt, so that an answer among them has a say
    in what is dropped. To train, or to score an answer, give `labels` with -100 at all that is no answer.
    With `output_hidden_states` those between the layers have the tokens that are left there, fewer than the
    prompt; the last ones have all, with zeros where tokens were dropped.
    Beside a compressor the pruner is saved and loaded with it; `save_pretrained` of a model that is pruned
    alone writes the plain model.

    model           a PeftModel stands for the model in it
    calibrate_on    inputs of the model's forward, one batch or several, that `fitprune` fits its recipe on,
                    where it is given none
    knobs           of the pruner; where positions are (time, row, column) tokens keep theirs
    UsageError for a model, a name or a knob that cannot be; nothing has changed then.
    """
    model = unwrap_peft(model)
    language_model = find_language_model(model)
    depth = llm_sizes(model.config)["llm_layers"]
    if name is not None:
        knobs = place_on_grids(model, name, knobs)
    batches = list_batches(calibrate_on)
    pruning = getattr(model, PRUNING_ATTRIBUTE, None) or ModelPruning(model, language_model)
    pruner = None
    if name is not None:
        pruner = registry.create(name, llm_layers=depth, **knobs)
        if pruner.samples and not batches:
            raise UsageError(f"pruner={name}: has to be calibrated: give calibrate_on, or a recipe")
        if batches and not pruner.samples:
            raise UsageError(f"pruner={name}: is not calibrated")
        if batches:
            recipe = pruning.calibrate_on_batches(batches, pruner)
            knobs = {**knobs, "recipe": recipe}
            pruner = registry.create(name, llm_layers=depth, **knobs)
    pruning.replace_pruner(pruner)
    pruning.settings = {"name": name, **knobs}
    note_pruner(model)


def note_pruner(model: PreTrainedModel) -> None:
    """Put a model's pruner, or that it has none, into the record of what is attached to it, if any is."""
    record = getattr(model.config, "slothkit", None)
    if record is None:
        return
    record.pop("pruner", None)
    pruning: ModelPruning | None = getattr(model, PRUNING_ATTRIBUTE, None)
    if pruning is not None:
        record["pruner"] = pruning.settings


def place_on_grids(model: PreTrainedModel, name: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """The knobs with positions=keep where a model's positions are (time, row, column). There tokens that
    close up would move to places inside the image, text too. UsageError where renumber is asked for."""
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    if "mrope_section" not in rope or "positions" not in registry.knobs(name):
        return knobs
    if knobs.get("positions") == "renumber":
        raise UsageError(
            f"{name}.positions=renumber: positions of {type(model).__name__} are times, rows and columns, "
            "which do not close up; leave it out, or take positions=keep"
        )
    return {**knobs, "positions": "keep"}


@dataclass
class PromptTokens:
    """Of a prompt with images or videos: (B, T) each. owner: the number of the pruning that acts on it."""

    owner: int
    is_visual: Tensor
    is_text: Tensor
    attention_mask: Tensor | None
    labels: Tensor | None


class ModelPruning(PruningAdapter):
    """The pruner of one model and its hooks."""

    def __init__(self, model: PreTrainedModel, language_model: Any):
        self.model = model
        self.base: Any = model.base_model  # Any: what a family has is not in transformers' base class
        self.language_model = language_model
        self.settings: dict[str, Any] = {}  # the pruner's name and knobs, as `prune` takes them
        self.wrapping = Wrapping()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ModelPruning":
        copied: ModelPruning = copy_attached(self, self.base, self.model, memo)
        return copied

    @property
    def keeps_positions(self) -> bool:
        parts = getattr(self.model, PARTS_ATTRIBUTE, None)
        return parts is not None and parts.compressor.keeps_positions

    def replace_pruner(self, pruner: Pruner | None) -> None:
        """Take this pruner; with None all hooks go."""
        self.use_pruner(pruner)
        wrapping = self.wrapping
        if pruner is not None and not wrapping.handles:
            base = self.base
            llm = self.language_model
            if hasattr(self.model, "generate"):  # a model without its head has none
                wrapping.wrap_method(self.model, "generate", self._generate_noting_length)
            hooks = wrapping.handles
            hooks.append(self.model.register_forward_pre_hook(self._note_labels, with_kwargs=True))
            hooks.append(base.register_forward_pre_hook(self._note_prompt, with_kwargs=True))
            hooks.append(llm.register_forward_pre_hook(self._start_llm_pruning, with_kwargs=True))
            hooks.append(llm.register_forward_hook(self._record_passed, with_kwargs=True))
            setattr(self.model, PRUNING_ATTRIBUTE, self)
        elif pruner is None and wrapping.handles:
            wrapping.unwrap_all(self.model)
            delattr(self.model, PRUNING_ATTRIBUTE)

    def calibrate_on_batches(
        self, batches: list[Mapping[str, Tensor]], pruner: FitPrune
    ) -> tuple[float, ...]:
        """FitPrune's recipe."""
        return calibrate_recipe(
            self.model,
            self.replace_pruner,
            self._encode_prompt,
            batches,
            pruner,
            before=self.pruner,
        )

    def _encode_prompt(self, inputs: Kwargs) -> Kwargs:
        """Inputs with their images encoded; attached parts may read the questions in them."""
        parts = getattr(self.model, PARTS_ATTRIBUTE, None)
        noting = nullcontext() if parts is None else parts.note_prompt(inputs)
        with hold_encoding(), noting:
            return encode_pixels(self.base, inputs)

    def _generate_noting_length(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The model's `generate`, which has the length of its prompt noted as long as it runs."""
        arguments = bind_arguments(original, args, kwargs)
        ids = arguments.get("inputs")  # `generate` calls its first argument so
        if ids is None:
            ids = arguments.get("input_ids")
        prompt = None if ids is None else (self, ids.shape[1])
        token = RUNNING_PROMPT.set(prompt)
        try:
            return original(*args, **kwargs)
        finally:
            RUNNING_PROMPT.reset(token)

    def _note_labels(self, model: nn.Module, args: Args, kwargs: Kwargs) -> HookResult:
        """Hand labels on to the model without its head, which most models keep them from."""
        kwargs = bind_arguments(model.forward, args, kwargs)
        if kwargs.get("labels") is not None:
            kwargs[LABELS_KEY] = kwargs["labels"]
        return (), kwargs

    def _note_prompt(self, base: nn.Module, args: Args, kwargs: Kwargs) -> HookResult:
        """Note what the prompt is, where images or videos come with it."""
        kwargs = bind_arguments(base.forward, args, kwargs)
        labels = kwargs.pop(LABELS_KEY, None)
        ids = kwargs.get("input_ids")
        outputs = kwargs.get("mm_encoder_outputs") or {}
        has_images = kwargs.get("pixel_values") is not None or outputs.get("image") is not None
        has_videos = kwargs.get("pixel_values_videos") is not None or outputs.get("video") is not None
        if ids is None:
            if has_images or has_videos:
                raise UsageError(
                    "pruning: give input_ids; with inputs_embeds a pruner cannot tell visual tokens from text"
                )
            return (), kwargs
        # where a family's videos have no placeholders of their own, their frames are images
        is_image, is_video = split_placeholders(ids, self.model.config, kwargs.get("mm_token_type_ids"))
        if not self._is_answering(read_cache(kwargs)):
            check_placeholders(is_image, has_images)
        if has_images or has_videos:
            mask = kwargs.get("attention_mask")
            if not isinstance(mask, Tensor) or mask.ndim != 2:
                mask = None
            is_placeholder = is_image | is_video
            is_text = self._find_question_text(ids, is_placeholder)
            is_visual = is_placeholder if has_videos else is_image
            kwargs[PROMPT_KEY] = PromptTokens(self.pruning_number, is_visual, is_text, mask, labels)
        return (), kwargs

    def _is_answering(self, cache: Cache | None) -> bool:
        """Whether what comes behind a cache is the answer of the `generate` that runs, or guesses of it."""
        owner, prompt_length = RUNNING_PROMPT.get() or (None, 0)
        return owner is self and cache is not None and cache.get_seq_length() >= prompt_length

    def _find_question_text(self, ids: Tensor, is_visual: Tensor) -> Tensor:
        """Tokens of questions: all text where nothing marks them."""
        markers = getattr(getattr(self.model, PARTS_ATTRIBUTE, None), "markers", None)
        if markers is None:
            return ~is_visual
        _, is_question = markers.find_turns(ids)
        return is_question & ~is_visual

    def _start_llm_pruning(self, llm: nn.Module, args: Args, kwargs: Kwargs) -> HookResult | None:
        """The pre-hook of the language model: gives its layers the context of a pruned pass, if it is not
        that of another model around it."""
        tokens: PromptTokens | None = kwargs.get(PROMPT_KEY)
        is_of_other = tokens is not None and tokens.owner != self.pruning_number
        if is_of_other or kwargs.get(PRUNING_CONTEXT) is not None:
            return None
        kwargs = bind_arguments(llm.forward, args, kwargs)
        kwargs.pop(PROMPT_KEY, None)
        embeds = kwargs["inputs_embeds"]
        cache = read_cache(kwargs)
        prompt = None
        if tokens is not None:
            check_cache_empty(cache)  # `attention_mask` tells of the cached tokens, too
            length = embeds.shape[1]
            owner, prompt_length = RUNNING_PROMPT.get() or (None, 0)
            if owner is self:
                if prompt_length > length:
                    raise UsageError(f"pruning: images were given with a part of the prompt; {WHOLE_PROMPT}")
                length = min(prompt_length, length)
            prompt = make_prompt(
                tokens.is_visual, tokens.is_text, length, tokens.attention_mask, tokens.labels, embeds
            )
        run, cache = self.start_pruning(prompt, embeds.shape[1], cache, kwargs.get("use_cache"))
        if run is not None:
            if prompt is not None:
                run.deepstack = take_deepstack(kwargs)
            if "keys" in run.pruner.needs and kwargs.get("position_ids") is None:
                # what is chosen by turned keys must not depend on how many tokens of padding come first
                positions = count_positions(kwargs.get("attention_mask"))
                if positions is not None:
                    kwargs["position_ids"] = positions[:, -embeds.shape[1] :]
            kwargs.pop("past_key_values", None)
            kwargs |= {PRUNING_CONTEXT: run, CACHE: cache}
        return (), kwargs

    def _record_passed(
        self,
        llm: nn.Module,  # noqa: ARG002
        args: Args,  # noqa: ARG002
        kwargs: Kwargs,
        output: object,  # noqa: ARG002
    ) -> None:
        """The hook of the language model: counts the visual tokens that went through its layers."""
        run = self._find_pass(kwargs)
        if run is not None:
            run.record_passed_tokens()
