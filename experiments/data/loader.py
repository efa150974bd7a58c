"""Samples -> batches, the same way for training and evaluation, in an order that a killed run finds again."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from compressors.errors import UsageError
from experiments.data import llava
from experiments.data.ahead import read_ahead
from experiments.data.feature_cache import FeatureCache
from experiments.data.order import SampleLength, StepOrder
from llm_adapters.answers import index_answers
from llm_adapters.conversation import IGNORE, Encoded, render_turns
from llm_adapters.images import stack_images
from llm_adapters.processing import FlashSlothProcessor

SPACES_OF_A_TURN = 16  # tokens that some tokenizers put before each piece of a text
Row = tuple[Encoded, Tensor]  # a sample's tokens, and its images: (crops, ...), empty for none


class SampleImages:
    """Where a sample's images come from: the feature cache of a frozen tower, or the pictures themselves."""

    def __init__(self, processor: FlashSlothProcessor, cache: FeatureCache | None = None):
        self.processor = processor
        self.cache = cache
        # of the model's forward
        self.argument = "pixel_values" if cache is None else "vision_features"

    def crops(self, sample: llava.Sample) -> list[int]:
        """How many crops each of a sample's images has; no more of it is read than its size."""
        tiling = self.processor.tiling
        if tiling.fixed or not self.processor.image_tokens:
            return [tiling.most_crops] * len(sample.images)
        if self.cache is not None:
            return [self.cache.crops(path) for path in sample.images]
        crops: list[int] = []
        for i in range(len(sample.images)):
            width, height = llava.read_image_size(sample, i)
            crops.append(tiling.num_crops(width, height))
        return crops

    def __call__(self, sample: llava.Sample, count: int) -> Tensor:
        """The first `count` images of a sample: (their crops, ...), empty for none."""
        if not count or not self.processor.image_tokens:
            return torch.empty(0)
        if self.cache is None:
            return self.processor.pixels([llava.open_image(sample, i) for i in range(count)])
        return torch.cat([self.cache[path] for path in sample.images[:count]])

    def add_images(self, batch: dict[str, Tensor], images: Sequence[Tensor]) -> dict[str, Tensor]:
        """The batch with its rows' images, if any row has one."""
        if any(map(len, images)):
            batch[self.argument] = stack_images(images)
        return batch


class ConversationDataset(Dataset):
    """LLaVA samples as encoded rows with their images."""

    bad_rows = 0  # that may be left out of steps: samples in memory have been checked

    def __init__(self, samples: Sequence[llava.Sample], images: SampleImages, max_length: int | None = None):
        self.samples = samples
        self.images = images
        self.max_length = max_length

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Any) -> Row:
        with llava.report_all_broken_images(self.samples):
            sample = self.find_sample(key)
            encoded = self.encode_sample(sample)
            # images of turns that were cut away are not read
            return encoded, self.images(sample, len(encoded.image_turns))

    def find_sample(self, key: Any) -> llava.Sample:
        """The sample that a step's order means by a key: its number."""
        return self.samples[key]

    def encode(self, key: Any) -> Encoded:
        """The row's tokens; an error names the sample."""
        return self.encode_sample(self.find_sample(key))

    def encode_sample(self, sample: llava.Sample) -> Encoded:
        """A sample's tokens; an error names it."""
        try:
            return self.images.processor.encode(sample.turns, self.images.crops(sample), self.max_length)
        except UsageError as error:
            if isinstance(error, llava.BrokenImage):  # it names the sample
                raise
            raise UsageError(f"{sample.describe_place()}: {error}") from error

    def estimate_lengths(self) -> list[SampleLength]:
        """Every sample's, without tokenizing or opening anything."""
        processor = self.images.processor
        lengths: list[SampleLength] = []
        for sample in self.samples:
            words = 0
            for question, answer in sample.turns:
                words += len(question.split()) + len((answer or "").split())
            words = min(words, self.max_length or words)
            visual = len(sample.images) * processor.crops * processor.image_tokens
            lengths.append(SampleLength(visual > 0, words + visual))
        return lengths

    def check_lengths(self) -> None:
        """Find a sample whose answer would be cut away, before training starts. A text has no more tokens
        than bytes, so only long samples need the tokenizer."""
        if not self.max_length:
            return
        for index in range(len(self.samples)):
            if self.count_text_bytes(index) > self.max_length:
                self.encode(index)

    def check_positions(self, positions: int | None, new_tokens: int = 0, left_out: int = 0) -> None:
        """Find a row that, with `new_tokens` of an answer, has more tokens than the language model has
        positions, `left_out` of which a crop takes beside its tokens. As for texts, only long ones need the
        tokenizer."""
        if positions is None:
            return
        processor = self.images.processor
        for index, sample in enumerate(self.samples):
            text = self.count_text_bytes(index) + len(sample.turns) * SPACES_OF_A_TURN
            bound = min(text, self.max_length or text)
            bound += len(sample.images) * processor.crops * (processor.image_tokens + left_out)
            bound += len(sample.turns) * processor.num_queries
            if bound + new_tokens > positions:
                encoded = self.encode(index)
                self.check_row_positions(sample, encoded, positions, new_tokens, left_out)

    def check_row_positions(
        self,
        sample: llava.Sample,
        encoded: Encoded,
        positions: int | None,
        new_tokens: int = 0,
        left_out: int = 0,
    ) -> None:
        """UsageError for a row that is longer than that."""
        if positions is None:
            return
        processor = self.images.processor
        visual = encoded.ids.count(processor.image_token_id)
        empty = 0
        if left_out:
            empty = visual // processor.image_tokens * left_out
        if len(encoded.ids) + empty + new_tokens > positions:
            queries = encoded.ids.count(processor.query_token_id)
            raise UsageError(
                f"{sample.describe_place()}: {len(encoded.ids)} tokens ({visual} visual, {queries} query)"
                f"{tell_left_out(empty)} and {new_tokens} of an answer to come do not fit into the "
                f"language model's {positions} positions; take fewer visual tokens, lower "
                "data.max_length, or drop it"
            )

    def count_text_bytes(self, index: int) -> int:
        """Of a row as it is rendered, at least as many as its text has tokens."""
        text = render_turns(self.samples[index].turns, self.images.processor.encoder.template)
        return len(text.encode())


def tell_left_out(positions: int) -> str:
    """What an error says of the positions of patches that are left out."""
    if not positions:
        return ""
    return f" and {positions} positions of patches that are left out"


def check_step_rows(rows: int, pieces: int, world: int) -> None:
    """UsageError when the rows of a step do not reach for its pieces and processes."""
    if rows < pieces * world:
        raise UsageError(
            f"accumulate={pieces}: a step has {rows} rows, fewer than {pieces} pieces in {world} "
            "process(es); lower it or trainer.devices, or raise batch_size"
        )


class StepRows(NamedTuple):
    """The rows of a step with their keys, and what is wrong with those that were left out."""

    keys: list[Any]
    rows: list[Row]
    faults: list[str]


class StepLoader:
    """Micro-batches of optimiser steps from step `start` on: each step's rows are sorted by length and cut
    into `accumulate` pieces. Of several processes, number `rank` of `world` reads its share of each step;
    `answer_tokens` counts its own. UsageError for a step with fewer rows than pieces and processes need."""

    def __init__(
        self,
        dataset: ConversationDataset,
        order: StepOrder,
        workers: int = 0,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ):
        self.dataset = dataset
        self.order = order
        self.pieces = order.optimisation.accumulate
        self.workers = workers
        self.start = start
        self.rank = rank
        self.world = world
        check_step_rows(order.rows_per_step, self.pieces, world)

    def __len__(self) -> int:
        # of the whole run: Lightning counts what a resumed one has done
        return self.order.steps * self.pieces

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self.order.iterate_batches(self.start)
        shares = (batch[self.rank :: self.world] for batch in batches)
        for step, pieces in enumerate(read_ahead(self.read_step, shares, self.workers), self.start):
            for i, piece in enumerate(pieces):
                yield {**piece, "number": step * self.pieces + i}

    def read_step(self, keys: Sequence[Any]) -> list[dict[str, Any]]:
        """The micro-batches of a step's samples, by the keys that the order has for them."""
        step = self.read_rows(keys)
        micro_batches = self.make_micro_batches(step)
        if step.faults:
            micro_batches[0]["faults"] = step.faults
        return micro_batches

    def read_rows(self, keys: Sequence[Any]) -> StepRows:
        """A step's rows. UsageError for one that cannot be read, or where too few are left."""
        step = StepRows([], [], [])
        for key in keys:
            try:
                row = self.read_row(key)
            except UsageError as error:
                step.faults.append(str(error))
                if not self.dataset.bad_rows or len(keys) - len(step.faults) < self.pieces:
                    raise
            else:
                step.keys.append(key)
                step.rows.append(row)
        return step

    def read_row(self, key: Any) -> Row:
        """One row; UsageError where it cannot be read."""
        return self.dataset[key]

    def make_micro_batches(self, step: StepRows) -> list[dict[str, Any]]:
        """A step's rows -> its micro-batches."""
        rows = step.rows
        # the loss of each piece is divided by the tokens of the whole step
        answer_tokens = 0
        for encoded, _ in rows:
            answer_tokens += sum(label != IGNORE for label in encoded.labels)
        micro_batches: list[dict[str, Any]] = []
        for numbers in self.cut_rows(rows):
            piece = [rows[number] for number in numbers]
            batch: dict[str, Any] = {**self.collate(piece)}
            batch["tokens"] = sum(len(encoded.ids) for encoded, _ in piece)  # without padding
            micro_batches.append({**batch, "pieces": self.pieces, "answer_tokens": answer_tokens})
        return micro_batches

    def cut_rows(self, rows: list[Row]) -> list[list[int]]:
        """The numbers of the rows of each piece of a step."""
        # rows of like length share a piece, so that little of it is padding
        numbers = sorted(range(len(rows)), key=lambda number: len(rows[number][0].ids))
        bounds = [len(rows) * i // self.pieces for i in range(self.pieces + 1)]
        return [numbers[start:end] for start, end in zip(bounds, bounds[1:])]

    def collate(self, rows: list[Row]) -> dict[str, Tensor]:
        """Rows -> tensors, padded on the right. No token sees what comes after it, so nobody needs a mask of
        the padding; with one, attention could not take its causal kernel."""
        images = self.dataset.images
        batch = self.collate_texts(rows)
        if images.processor.image_tokens and "image_turn" not in batch:
            return batch | self.make_blank_images(len(rows))
        return images.add_images(batch, [row_images for _, row_images in rows])

    def collate_texts(self, rows: list[Row]) -> dict[str, Tensor]:
        """All of a piece but its images."""
        batch = self.dataset.images.processor.collate([encoded for encoded, _ in rows])
        del batch["attention_mask"]
        batch["answer_index"] = index_answers(batch["labels"])
        return batch

    def make_blank_images(self, rows: int) -> dict[str, Tensor]:
        """An image of no turn for each row of a piece without images: nobody sees it, but every part takes
        part in every piece. Else a process with text alone would leave the others waiting for its gradients,
        and whether momentum moves a part would depend on the number of processes."""
        images = self.dataset.images
        if images.cache is None:
            crop = torch.zeros(3, *images.processor.crop_size)
        else:
            crop = torch.zeros(images.cache.features.shape[1:], dtype=torch.float16)  # (H, W, C)
        turn = torch.zeros(rows, 1, dtype=torch.long)  # turn 0: in no turn
        return {images.argument: crop.repeat(rows, 1, 1, 1, 1), "image_turn": turn}


def open_feature_cache(inputs: Mapping[str, Path]) -> FeatureCache | None:
    """The features that the stage was given, if any."""
    if "features" not in inputs:  # a tower that runs along, or a blind cell
        return None
    return FeatureCache(inputs["features"])
