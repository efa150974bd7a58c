"""The LLaVA files and samples that a role reads: "pretrain", "train" or "test"."""

from collections.abc import Mapping
from pathlib import Path

from experiments.config.schema import Config
from experiments.data import llava


def is_file_entry(entry: str) -> bool:
    """Whether an entry of data.pretrain, data.train or data.test is a file, not the name of a split."""
    return entry.endswith(".json")


def locate_role_files(
    config: Config, inputs: Mapping[str, Path], role: str
) -> list[tuple[Path, Path | None]]:
    """The LLaVA files of a role and their image folders; None: beside the file. Splits lie in the folder of
    the stage that wrote the embedded data set, `inputs["data"]`."""
    images = None
    if config.data.images:
        images = Path(config.data.images)
    files: list[tuple[Path, Path | None]] = []
    for entry in getattr(config.data, role):
        if is_file_entry(entry):
            files.append((Path(entry), images))
        else:
            # a plan refuses splits where data.dataset is null
            assert config.data.dataset is not None
            files.append((inputs["data"] / config.data.dataset / f"{entry}.json", None))
    return files


def load_role_samples(
    config: Config, inputs: Mapping[str, Path], role: str, check_images: bool = True
) -> list[llava.Sample]:
    """All samples of a role, file by file."""
    samples: list[llava.Sample] = []
    for path, images in locate_role_files(config, inputs, role):
        samples += llava.load_samples(path, images, check_images, config.data.outside_images)
    return samples


def load_questions(
    config: Config, inputs: Mapping[str, Path], check_images: bool = True
) -> list[llava.Sample]:
    """The questions of an evaluation, one a sample."""
    questions = llava.split_questions(load_role_samples(config, inputs, "test", check_images))
    return questions[: config.evaluate.limit]
