"""The work of a stage, as far as its key tells: what estimates of time compare."""

from dataclasses import dataclass

from experiments.store.keys import digest_value
from experiments.store.plan import Stage

# What a row's time follows from.
MODEL_KEYS = (
    "llm",
    "tower",
    "size",
    "tiles",
    "layout",
    "image_rate",
    "levels",
    "cues",
    "precision",
    "compressor",
    "query_module",
    "train_tower",
    "lora",
    "teacher",
)


@dataclass(frozen=True)
class Workload:
    """The work of a stage.

    model    digest of what a row's time follows from
    passes   over its data; an embedded data set of scale 0.5 is half a pass; of a stream as many as its
             rows, which is more than it has
    limit    steps at most, in an evaluation questions; None: all
    batch    rows of a step
    data     digest of the data that passes are over, which tell of no other data's; None: the embedded set,
             whose passes are in proportion to its scale
    """

    kind: str
    model: str
    passes: float
    limit: int | None
    batch: int
    data: str | None = None


def derive_workload(stage: Stage) -> Workload:
    """The work of a stage, from what its key says."""
    # an evaluation's key names the model only through the training that it evaluates
    model_stage = stage.inputs.get("finetune", stage)
    model = {name: model_stage.depends[name] for name in MODEL_KEYS if name in model_stage.depends}
    if "evaluated_compressor" in stage.depends:
        model["evaluated_compressor"] = stage.depends["evaluated_compressor"]
    recipe = stage.depends.get("optimisation", {})
    evaluation = stage.depends.get("evaluate", {})
    data = stage.depends
    if "data" in stage.inputs:
        data = stage.inputs["data"].depends
    limit = recipe.get("max_steps") or evaluation.get("limit")
    batch = recipe.get("batch_size", 1)
    passes = recipe.get("epochs", 1) * data.get("scale", 1.0)
    if "stream" in stage.depends:  # of unknown length, so that `limit` says it all
        passes = float(limit * batch)
    own_data = None
    if "data" not in stage.inputs and stage.kind != "data":
        own_data = digest_value(stage.depends["data"])[:16]
    return Workload(
        kind=stage.kind,
        model=digest_value(model)[:16],
        passes=passes,
        limit=limit,
        batch=batch,
        data=own_data,
    )
