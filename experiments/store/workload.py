"""The work of a stage, as far as its key tells: what estimates of time compare."""

from dataclasses import dataclass

from experiments.store.keys import digest_value
from experiments.store.plan import Stage

MODEL_KEYS = (
    "llm",
    "tower",
    "size",
    "tiles",
    "layout",
    "image_rate",
    "levels",
    "precision",
    "compressor",
    "query_module",
    "train_tower",
    "lora",
)  # what a row's time follows from


@dataclass(frozen=True)
class Workload:
    """The work of a stage. `model`: digest of what a row's time follows from. `passes`: over its data, an
    embedded data set of scale 0.5 being half a pass. `limit`: steps at most. `batch`: rows of a step."""

    kind: str
    model: str
    passes: float
    limit: int | None
    batch: int


def derive_workload(stage: Stage) -> Workload:
    """The work of a stage, from what its key says."""
    trained = stage.inputs.get("finetune", stage)
    recipe = stage.depends.get("optimisation", {})
    data = stage.inputs["data"].depends if "data" in stage.inputs else stage.depends
    model = {name: trained.depends[name] for name in MODEL_KEYS if name in trained.depends}
    evaluation = stage.depends.get("evaluate", {})
    return Workload(
        stage.kind,
        digest_value(model)[:16],
        recipe.get("epochs", 1) * data.get("scale", 1.0),
        recipe.get("max_steps") or evaluation.get("limit"),
        recipe.get("batch_size", 1),
    )
