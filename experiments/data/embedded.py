"""The contract of a data set that is written on the spot, without a download.

A subclass is offered in the entry-point group `slothkit.datasets`; `data.dataset=NAME` takes it. Its
constructor's keyword arguments are the settings `data.seed` and `data.scale`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

ProgressFunction = Callable[[int, int], None]  # (scenes done, scenes in all)


class EmbeddedDataset:
    """Writes LLaVA-format JSON files, one a split, and their images.

    version   stands in the key of the stage that writes it: any change to what is written counts it up
    splits    names of the files, without .json; the one called `pretrain` has stage 1's captions
    families  of the questions; none where they are not known before they are written
    """

    version: ClassVar[int]
    splits: ClassVar[tuple[str, ...]]
    families: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, seed: int = 0, scale: float = 1.0):
        self.seed = seed
        self.scale = scale

    def count_scenes(self) -> int:
        """How many scenes `write` will report."""
        raise NotImplementedError

    def write(self, folder: Path, progress: ProgressFunction) -> dict[str, Any]:
        """Writes all splits into `folder`, which is new or empty; what is known of them, as JSON."""
        raise NotImplementedError
