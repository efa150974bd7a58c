"""Which samples each optimiser step reads, from the seed alone: a killed run finds its place again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from experiments.config.schema_sections import OptimisationSettings
from experiments.data.shares import Share

Batches = list[list[int]]  # sample numbers
MEGABATCH = 50  # batches among which rows of like length are found


class SampleLength(NamedTuple):
    """Whether a sample has images, and its tokens, roughly: words and visual tokens."""

    images: bool
    tokens: int


class StepOrder(Protocol):
    """Which samples each optimiser step reads, by the keys under which a data set has them."""

    optimisation: OptimisationSettings

    @property
    def steps(self) -> int:
        """Steps in all."""

    @property
    def rows_per_step(self) -> int:
        """Rows of a step."""

    def iterate_batches(self, start: int = 0) -> Iterator[Sequence[Any]]:
        """The keys of each step from `start` on."""


@dataclass
class SampleOrder:
    """Which samples each optimiser step reads: a permutation per epoch, from the seed alone. With `lengths`
    the rows of a step are all with images or all without, and of like length, as in LLaVA. `shares` are those
    of the files that the samples come from, in order; none: an epoch has each sample once."""

    count: int
    optimisation: OptimisationSettings
    seed: int
    lengths: Sequence[SampleLength] | None = None
    shares: Sequence[Share] = ()

    @property
    def rows_per_epoch(self) -> int:
        """Rows that an epoch draws."""
        if not self.shares:
            return self.count
        return sum(share.drawn for share in self.shares)

    @property
    def rows_per_step(self) -> int:
        """Rows of a step; of a set that is smaller than a batch all of them."""
        return min(self.rows_per_epoch, self.optimisation.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; what does not fill a batch is left for another epoch's permutation."""
        return max(1, self.rows_per_epoch // self.optimisation.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        whole = self.steps_per_epoch * self.optimisation.epochs
        return min(whole, self.optimisation.max_steps or whole)

    def iterate_batches(self, start: int = 0) -> Iterator[list[int]]:
        """Sample numbers of each step from `start` on."""
        size = self.optimisation.batch_size
        for step in range(start, self.steps):
            epoch, position = divmod(step, self.steps_per_epoch)
            if step == start or position == 0:
                order = self.permute_epoch(epoch)
            yield order[position * size : (position + 1) * size]

    def permute_epoch(self, epoch: int) -> list[int]:
        """The sample numbers of an epoch in the order in which it reads them."""
        # a prime of its own for the seed: no two seeds have an epoch's order in common
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.rows_per_epoch, generator=generator).tolist()
        if self.shares:
            drawn = self.draw_shares(generator)
            order = [drawn[position] for position in order]
        if self.lengths is None:
            return order
        batches: Batches = []
        unbatched: list[int] = []
        for has_images in (True, False):
            alike = [i for i in order if self.lengths[i].images is has_images]
            pure_batches, remainder = self.group_similar_lengths(alike, self.lengths)
            batches += pure_batches
            unbatched += remainder
        # what fills no batch of one kind makes mixed ones
        mixed_batches, remainder = self.group_similar_lengths(unbatched, self.lengths)
        batches += mixed_batches
        # short and long batches alternate: no curriculum
        shuffled: list[int] = []
        for position in torch.randperm(len(batches), generator=generator).tolist():
            shuffled += batches[position]
        return shuffled + remainder

    def draw_shares(self, generator: torch.Generator) -> list[int]:
        """The sample numbers that an epoch draws, file by file."""
        drawn: list[int] = []
        first = 0
        for share in self.shares:
            copies, remainder = divmod(share.drawn, share.rows)
            drawn += list(range(first, first + share.rows)) * copies
            chosen = torch.randperm(share.rows, generator=generator)[:remainder] + first
            drawn += chosen.tolist()
            first += share.rows
        return drawn

    def group_similar_lengths(
        self, order: list[int], lengths: Sequence[SampleLength]
    ) -> tuple[Batches, list[int]]:
        """Batches of neighbours in length, found among `MEGABATCH` batches at a time, and what fills none."""
        size = self.optimisation.batch_size
        end = len(order) - len(order) % size
        batches: Batches = []
        for start in range(0, end, MEGABATCH * size):
            stop = min(start + MEGABATCH * size, end)
            megabatch = order[start:stop]
            megabatch.sort(key=lambda i: lengths[i].tokens, reverse=True)
            for first in range(0, len(megabatch), size):
                batches.append(megabatch[first : first + size])
        return batches, order[end:]
