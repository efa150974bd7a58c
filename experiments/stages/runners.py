"""Which function computes which kind of stage."""

from collections.abc import Callable
from typing import Any


def find_runner(kind: str) -> Callable[..., Any]:
    """The function that computes stages of `kind`: (config, inputs, out, report), features also `roles`.

    Hand it to `experiments.store.store.Store`. It pickles by its name, so that workers can have it.
    """
    # The imports stand inside since torch must be imported by the process that computes, and by no other: a
    # sweep that plans or watches its workers does without, and a worker sets its threads before the import.
    if kind == "data":
        from experiments.stages import dataset

        return dataset.run
    if kind == "features":
        from experiments.stages import features

        return features.run
    if kind == "pretrain":
        from experiments.stages import train

        return train.pretrain
    if kind == "finetune":
        from experiments.stages import train

        return train.finetune
    if kind == "evaluate":
        from experiments.stages import evaluate

        return evaluate.run
    raise ValueError(f"no stage of kind {kind}")
