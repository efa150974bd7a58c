"""Writes PictureVQA: `python -m experiments.picture_vqa to=DIR`.

Exit code 0: written; 2: bad input or a full disk, one line says which; 130: Ctrl-C.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.setting_fields import setting
from experiments.data import parquet
from experiments.picture_vqa.dataset import HELD_OUT_SPLITS, PictureVQA


@dataclass(frozen=True)
class WriteOptions:
    """What is written where."""

    to: Path = setting(None, "new folder to write", required=True, was=("out",))
    seed: int = setting(0, "of all scenes and questions", low=0)
    scale: float = setting(1.0, "multiplies the number of scenes of every split", above=0)
    parquet: bool = setting(False, "the held-out splits as Parquet files too (needs pyarrow)")


COMMAND = Command(
    usage="python -m experiments.picture_vqa to=DIR [KEY=VALUE ...]",
    description="Writes PictureVQA, the embedded benchmark, in LLaVA format.",
    options=WriteOptions,
    elsewhere="write to another place with to=DIR",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(write_dataset, arguments)


def write_dataset(line: CommandLine) -> int:
    """Write the data set and say how large it is."""
    options: WriteOptions = line.options
    if options.parquet:
        parquet.require_pyarrow()  # before minutes of drawing
    try:
        manifest = write_with_bar(PictureVQA(seed=options.seed, scale=options.scale), options.to)
    except FileExistsError as error:
        raise UsageError(f"to={error}; give a new one") from error
    if options.parquet:
        for split in HELD_OUT_SPLITS:
            parquet.write_parquet(options.to / f"{split}.json", options.to / f"{split}.parquet")
    scenes = 0
    questions = 0
    for split_statistics in manifest["splits"].values():
        scenes += split_statistics["scenes"]
        questions += split_statistics["questions"]
    sys.stdout.write(f"{options.to}: {scenes} scenes, {questions} questions\n")
    return 0


def write_with_bar(dataset: PictureVQA, folder: Path) -> dict[str, Any]:
    """Write it under a progress bar."""
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scenes")

        def show_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return dataset.write(folder, show_progress)


if __name__ == "__main__":
    sys.exit(main())
