"""The LLaVA samples that a stage reads, and the questions that an evaluation asks."""

from collections.abc import Mapping
from pathlib import Path

from experiments.config.schema import Config
from experiments.data import llava
from experiments.store.plan import locate_role_files


def load_role_samples(
    config: Config, inputs: Mapping[str, Path], role: str, check_images: bool = True
) -> list[llava.Sample]:
    """All samples of a role ("pretrain", "train" or "test"), file by file."""
    return [
        sample
        for path, images in locate_role_files(config, inputs, role)
        for sample in llava.load_samples(path, images, check_images=check_images)
    ]


def load_questions(
    config: Config, inputs: Mapping[str, Path], check_images: bool = True
) -> list[llava.Sample]:
    """The questions of an evaluation, one a sample."""
    return llava.split_questions(load_role_samples(config, inputs, "test", check_images))[
        : config.evaluate.limit
    ]
