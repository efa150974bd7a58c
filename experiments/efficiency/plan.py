"""What is asked of every model, and how often it is measured."""

from dataclasses import dataclass
from typing import NamedTuple

from experiments.models.random_model import TEXT_TOKENS

PictureSize = tuple[int, int]  # width and height in pixels


class PictureCase(NamedTuple):
    """What a model is shown at once: `batch` rows of `images` pictures of one size."""

    size: PictureSize
    batch: int
    images: int


@dataclass(frozen=True)
class MeasuringPlan:
    """All of it, for models that answer.

    pictures    sizes
    batches     rows at once
    images      pictures of a row
    text        text tokens of a row
    tokens      tokens of an answer
    rounds      measured rounds, after one that does not count
    static      a cache of fixed size, with which transformers compiles the decoding step on a GPU
    """

    pictures: tuple[PictureSize, ...]
    batches: tuple[int, ...] = (1,)
    images: tuple[int, ...] = (1,)
    text: int = TEXT_TOKENS
    tokens: int = 33
    rounds: int = 7
    static: bool = False

    def list_cases(self) -> list[PictureCase]:
        """Every size with every batch and every number of images."""
        cases = []
        for size in self.pictures:
            for batch in self.batches:
                for images in self.images:
                    cases.append(PictureCase(size, batch, images))
        return cases
