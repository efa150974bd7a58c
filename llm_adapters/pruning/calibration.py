"""FitPrune's recipe from a few prefills: the smallest loss of attention under which the budget is reached.

calibrate(model, batches)              # the model has pruner "fitprune"; its knobs then have a recipe
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from llm_adapters.pruning import schedule
from llm_adapters.pruning.base import Pruner
from llm_adapters.pruning.fitprune import AttentionObserver, FitPrune, LossTrial

BISECTION_STEPS = 10  # bisections of the loss in [0, 1]; the released code makes 7


def calibrate_pruner(model, batches: Iterable[Mapping[str, Tensor]]) -> tuple[float, ...]:
    """Fit the recipe of a model (FlashSlothForConditionalGeneration) whose pruner is `fitprune` on prefills
    of `batches`, inputs of its forward, and give it that recipe; returned as well."""
    if model.config.pruner != "fitprune":
        raise UsageError(f"pruner={model.config.pruner}: only fitprune is calibrated")
    knobs = dict(model.config.pruner_knobs or {})
    pruner = model.pruner
    recipe = calibrate_recipe(
        model, model.use_pruner, partial(replace_pixels, model), batches, pruner, before=pruner
    )
    model.set_pruner("fitprune", **{**knobs, "recipe": recipe})
    return recipe


@torch.no_grad()
def calibrate_recipe(
    model: nn.Module,
    use: Callable[[Pruner | None], None],
    encode: Callable[[dict], dict],
    batches: Iterable[Mapping[str, Tensor]],
    pruner: FitPrune,
    before: Pruner | None,
) -> tuple[float, ...]:
    """The recipe that `pruner` lacks, fitted on prefills of `batches`, inputs of a model's forward. `use`
    puts a pruner into the model, in the end `before`; `encode` lets the images of inputs go through the tower
    once and for all."""
    depth, training = pruner.llm_layers, model.training
    model.eval()
    try:
        prompts = [
            encode({name: value for name, value in batch.items() if name != "labels"}) for batch in batches
        ]

        def run(trial: AttentionObserver) -> AttentionObserver:
            use(trial)
            for prompt in prompts:
                model(**prompt, use_cache=False, logits_to_keep=1)
            return trial

        sums = run(AttentionObserver(depth)).sums
        if not sums:
            raise UsageError("fitprune: none of the samples it is to be calibrated on has an image")
        return fit_recipe(
            depth,
            pruner.average,
            lambda loss: average_trial_shares(depth, run(LossTrial(depth, loss, sums, pruner.positions))),
        )
    finally:  # a calibration that fails or is interrupted leaves no trial behind
        use(before)
        model.train(training)


def replace_pixels(model, prompt: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inputs with patch features in the place of pixels."""
    if "pixel_values" in prompt:
        prompt["vision_features"] = model.get_image_features(prompt.pop("pixel_values"))
    return prompt


def average_trial_shares(depth: int, trial: LossTrial) -> list[float]:
    """What each layer left in a trial, on average over rows with visual tokens."""
    found = []
    for layer in range(depth - 1):
        rows = [c / n for counts, first in trial.left[layer :: depth - 1] for c, n in zip(counts, first) if n]
        found.append(sum(rows) / len(rows))
    return found


def fit_recipe(depth: int, budget: float, left: Callable[[float], list[float]]) -> tuple[float, ...]:
    """The recipe: `left(loss)` at the smallest loss that reaches `budget`, the average share over layers, cut
    off where the budget is reached: no layer behind drops more."""
    low, high, best = 0.0, 1.0, left(1.0)
    layers = range(1, depth)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        found = left(middle)
        if schedule.average_share(depth, layers, found) <= budget:
            high, best = middle, found
        else:
            low = middle
    recipe, spent = [], 1.0
    for i, share in enumerate(best):
        rest = depth - 1 - i
        level = (budget * depth - spent) / rest  # what all layers from here on could have
        if share <= level + 1e-9:
            recipe += [level] * rest
            break
        recipe.append(share)
        spent += share
    return tuple(round(share, 6) for share in recipe)
