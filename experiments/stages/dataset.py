"""The stage that writes an embedded data set."""

import shutil
from pathlib import Path

from experiments.config.schema import Config
from experiments.registries import datasets
from experiments.runtime.progress import Reporter


def run(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:  # noqa: ARG001
    """OUT/NAME/{pretrain,train,tune,test,...}.json and images."""
    # quick enough that a killed run starts over
    for leftover in out.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    assert config.data.dataset is not None  # a cell without one has no such stage
    dataset = datasets.create(config.data.dataset, seed=config.data.seed, scale=config.data.scale)
    report.announce_steps(dataset.count_scenes())
    dataset.write(out / config.data.dataset, lambda *_: report.advance_steps())
