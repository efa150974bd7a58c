"""Samples -> batches, the same way for training and evaluation, in an order that a killed run finds again."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compressors.errors import UsageError
from experiments.config import Optimisation
from experiments.data import llava
from llm_adapters.conversation import IGNORE, Encoded, render
from llm_adapters.processing import FlashSlothProcessor, stack_images


class Images:
    """Where a sample's images come from: the feature cache of a frozen tower, or the pictures themselves."""

    def __init__(self, processor: FlashSlothProcessor, cache=None):
        self.processor, self.cache = processor, cache
        self.argument = "pixel_values" if cache is None else "vision_features"

    def __call__(self, sample: llava.Sample, count: int) -> Tensor:
        """The first `count` images of a sample: (count * crops, ...), empty for none."""
        if not count or not self.processor.image_tokens:
            return torch.empty(0)
        if self.cache is None:
            return self.processor.pixels([llava.open_image(sample, i) for i in range(count)])
        return torch.cat([self.cache[path] for path in sample.images[:count]]).float()

    def add(self, batch: dict[str, Tensor], rows: Sequence[Tensor]) -> dict[str, Tensor]:
        """The batch with its rows' images, if any row has one."""
        if any(map(len, rows)):
            batch[self.argument] = stack_images(rows)
        return batch


class Conversations(Dataset):
    """LLaVA samples as encoded rows with their images."""

    def __init__(self, samples: Sequence[llava.Sample], images: Images, max_length: int | None = None):
        self.samples, self.images, self.max_length = samples, images, max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Encoded, Tensor]:
        encoded = self.encode(index)
        return encoded, self.images(self.samples[index], len(encoded.image_turns))

    def encode(self, index: int) -> Encoded:
        """The row's tokens; an error names the sample."""
        sample = self.samples[index]
        try:
            return self.images.processor.encode(sample.turns, len(sample.images), self.max_length)
        except UsageError as error:
            raise UsageError(f"sample {index} (id {sample.id}): {error}") from error

    def check_lengths(self) -> None:
        """Find a sample whose answer would be cut away, before training starts. A text has no more tokens
        than bytes, so only long samples need the tokenizer."""
        template = self.images.processor.encoder.template
        for index, sample in enumerate(self.samples):
            if self.max_length and len(render(sample.turns, template).encode()) > self.max_length:
                self.encode(index)


@dataclass
class Order:
    """Which samples each optimiser step reads: a permutation per epoch, from the seed alone."""

    count: int
    optimisation: Optimisation
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch; what does not fill a batch is left for another epoch's permutation."""
        return max(1, self.count // self.optimisation.batch_size)

    @property
    def steps(self) -> int:
        """Steps in all."""
        whole = self.per_epoch * self.optimisation.epochs
        return min(whole, self.optimisation.max_steps or whole)

    def batches(self, start: int = 0) -> Iterator[list[int]]:
        """Sample numbers of each step from `start` on."""
        size = self.optimisation.batch_size
        for step in range(start, self.steps):
            epoch, place = divmod(step, self.per_epoch)
            if step == start or not place:
                generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
                order = torch.randperm(self.count, generator=generator).tolist()
            yield order[place * size : (place + 1) * size]


class StepLoader:
    """Micro-batches of optimiser steps from step `start` on: each step's rows are sorted by length and cut
    into `accumulate` pieces. Of several processes, number `rank` of `world` reads its share of each step."""

    def __init__(self, dataset: Conversations, order: Order, workers: int = 0, start: int = 0, rank: int = 0,
                 world: int = 1):
        self.dataset, self.order, self.pieces = dataset, order, order.optimisation.accumulate
        self.workers, self.start, self.rank, self.world = workers, start, rank, world

    def __len__(self) -> int:
        # of the whole run: Lightning counts what a resumed one has done
        return self.order.steps * self.pieces

    def __iter__(self) -> Iterator[dict]:
        batches = [batch[self.rank :: self.world] for batch in self.order.batches(self.start)]
        loader = DataLoader(self.dataset, batch_sampler=batches, collate_fn=self.cut,
                            num_workers=self.workers, pin_memory=torch.cuda.is_available())
        for step, pieces in enumerate(loader, self.start):
            for i, piece in enumerate(pieces):
                yield {**piece, "number": step * self.pieces + i}

    def cut(self, rows: list[tuple[Encoded, Tensor]]) -> list[dict]:
        """A step's rows -> its micro-batches."""
        rows = sorted(rows, key=lambda row: len(row[0].ids))
        pieces = min(self.pieces, len(rows))
        answer_tokens = sum(label != IGNORE for encoded, _ in rows for label in encoded.labels)
        bounds = [len(rows) * i // pieces for i in range(pieces + 1)]
        return [{**self.collate(rows[a:b]), "pieces": self.pieces, "answer_tokens": answer_tokens}
                for a, b in zip(bounds, bounds[1:])]

    def collate(self, rows: list[tuple[Encoded, Tensor]]) -> dict[str, Tensor]:
        """Rows -> tensors."""
        batch = self.dataset.images.processor.collate([encoded for encoded, _ in rows])
        return self.dataset.images.add(batch, [images for _, images in rows])


def feature_cache(inputs: dict[str, Path]):
    """The features that the stage was given, if any."""
    from experiments.features import FeatureCache

    return FeatureCache(inputs["features"]) if "features" in inputs else None
