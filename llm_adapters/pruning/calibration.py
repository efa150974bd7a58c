"""FitPrune's recipe from a few prefills: the smallest loss of attention under which the budget is reached.

calibrate_pruner(model, batches)              # the model has pruner "fitprune"; its knobs then have a recipe
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from llm_adapters.modes import evaluating
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Pruner
from llm_adapters.pruning.fitprune import AttentionObserver, FitPrune, LossTrial

BISECTION_STEPS = 10  # bisections of the loss in [0, 1]; the released code makes 7


def calibrate_pruner(model: Any, batches: Iterable[Mapping[str, Tensor]]) -> tuple[float, ...]:
    """Fit the recipe of a model (FlashSlothForConditionalGeneration) whose pruner is `fitprune` on prefills
    of `batches` (or of one batch), inputs of its forward, and give it that recipe; returned as well."""
    if model.config.pruner != "fitprune":
        raise UsageError(f"pruner={model.config.pruner}: only fitprune is calibrated")
    knobs = dict(model.config.pruner_knobs or {})
    pruner = model.pruner
    recipe = calibrate_recipe(
        model, model.use_pruner, partial(replace_pixels, model), batches, pruner, before=pruner
    )
    model.set_pruner("fitprune", **{**knobs, "recipe": recipe})
    return recipe


def list_batches(
    batches: Iterable[Mapping[str, Tensor]] | Mapping[str, Tensor],
) -> list[Mapping[str, Tensor]]:
    """Batches as a list; a single one is a list of it. UsageError for what is none."""
    if isinstance(batches, Mapping):
        return [batches]
    listed = list(batches)
    for batch in listed:
        if not isinstance(batch, Mapping):
            raise UsageError(
                f"calibrate_on: expected inputs as the processor makes them, not {type(batch).__name__}"
            )
    return listed


@torch.no_grad()
def calibrate_recipe(
    model: nn.Module,
    use: Callable[[Pruner | None], None],
    encode: Callable[[dict[str, Any]], dict[str, Any]],
    batches: Iterable[Mapping[str, Tensor]],
    pruner: FitPrune,
    before: Pruner | None,
) -> tuple[float, ...]:
    """The recipe that `pruner` lacks, fitted on prefills of `batches`, inputs of a model's forward. `use`
    puts a pruner into the model, in the end `before`; `encode` lets the images of inputs go through the tower
    once and for all."""
    batches = list_batches(batches)
    depth = pruner.llm_layers
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.callback(use, before)  # a calibration that fails or is interrupted leaves no trial behind
        prompts = []
        for batch in batches:
            inputs = dict(batch)
            inputs.pop("labels", None)  # raters are those of generation, not the tokens before answers
            prompts.append(encode(inputs))

        def run_prefills(trial: AttentionObserver) -> None:
            use(trial)
            for prompt in prompts:
                model(**prompt, use_cache=False, logits_to_keep=1)

        observer = AttentionObserver(depth)
        run_prefills(observer)
        if not observer.sums:
            raise UsageError("fitprune: none of the samples it is to be calibrated on has an image")

        def measure_shares(loss: float) -> list[float]:
            trial = LossTrial(depth, loss, observer.sums, pruner.positions)
            run_prefills(trial)
            return average_trial_shares(depth, trial)

        return fit_recipe(depth, pruner.average, measure_shares)


def replace_pixels(model: Any, prompt: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with patch features in the place of pixels."""
    if "pixel_values" in prompt:
        prompt["vision_features"] = model.get_image_features(prompt.pop("pixel_values"))
    return prompt


def average_trial_shares(depth: int, trial: LossTrial) -> list[float]:
    """What each layer left in a trial, on average over rows with visual tokens."""
    shares = []
    for layer in range(depth - 1):
        row_shares = []
        for counts, first_counts in trial.left[layer :: depth - 1]:  # one entry a prefill and layer
            for count, first in zip(counts, first_counts):
                if first:
                    row_shares.append(count / first)
        shares.append(sum(row_shares) / len(row_shares))
    return shares


def fit_recipe(
    depth: int,
    budget: float,
    left: Callable[[float], list[float]],
) -> tuple[float, ...]:
    """The recipe: `left(loss)` at the smallest loss that reaches `budget`, the average share over layers, cut
    off where the budget is reached: no layer behind drops more."""
    low = 0.0
    high = 1.0
    best = left(1.0)
    layers = range(1, depth)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        shares = left(middle)
        if schedule.average_share(depth, layers, shares) <= budget:
            high = middle
            best = shares
        else:
            low = middle
    recipe: list[float] = []
    spent = 1.0  # the first layer has all tokens
    for index, share in enumerate(best):
        remaining = depth - 1 - index
        level = (budget * depth - spent) / remaining  # what all layers from here on could have
        if share <= level + 1e-9:
            recipe += [level] * remaining
            break
        recipe.append(share)
        spent += share
    return tuple(round(share, 6) for share in recipe)
