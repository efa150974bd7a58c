"""The stage that writes an embedded data set."""

import shutil
from pathlib import Path

from experiments.config.schema import Config
from experiments.picture_vqa import dataset
from experiments.runtime.progress import Reporter


def run(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:  # noqa: ARG001
    """OUT/picture_vqa/{pretrain,train,tune,test,...}.json and images. Quick: a killed run starts over."""
    for left in out.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    scale = config.data.scale
    sizes = {name: max(1, round(split.scenes * scale)) for name, split in dataset.SPLITS.items()}
    report.announce_steps(sum(sizes.values()))
    dataset.write(out / config.data.dataset, config.data.seed, sizes, lambda *_: report.advance_steps())
