"""The files and samples that a role reads: "pretrain", "train", "validation" or "test"."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

from experiments.config.schema import Config
from experiments.data import llava
from experiments.data.formats import is_file_entry

# what stage 2 calls the stage whose splits it is watched on
VALIDATION_INPUT = "validation"


def locate_role_files(
    config: Config, inputs: Mapping[str, Path], role: str
) -> list[tuple[Path, Path | None]]:
    """The files of a role and their image folders; None: beside the file. Splits lie in the folder of the
    stage that wrote the embedded data set, `inputs["data"]`."""
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
            folder = inputs[VALIDATION_INPUT if role == "validation" else "data"]
            files.append((folder / config.data.dataset / f"{entry}.json", None))
    return files


def load_role_files(
    config: Config, inputs: Mapping[str, Path], role: str, check_images: bool = True
) -> list[list[llava.Sample]]:
    """The samples of each file of a role."""
    files: list[list[llava.Sample]] = []
    for path, images in locate_role_files(config, inputs, role):
        files.append(llava.load_samples(path, images, check_images, config.data.outside_images))
    return files


def load_role_samples(
    config: Config, inputs: Mapping[str, Path], role: str, check_images: bool = True
) -> list[llava.Sample]:
    """All samples of a role, file by file."""
    return list(chain.from_iterable(load_role_files(config, inputs, role, check_images)))


def load_questions(
    config: Config, inputs: Mapping[str, Path], check_images: bool = True
) -> list[llava.Sample]:
    """The questions of `data.test`, one a sample; an evaluation asks the first `evaluate.limit` of them."""
    return llava.split_questions(load_role_samples(config, inputs, "test", check_images))
