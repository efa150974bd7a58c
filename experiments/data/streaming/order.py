"""Which rows of a stream each optimiser step reads: from the seed alone, and from any step on.

An epoch opens its shards in an order drawn from the seed, `INPUT_SHARDS` of them at a time; the rows that
come in are shuffled in blocks of `data.shuffle_buffer`. A block follows from where its shards were when it
began: these few numbers, and no row, are what a checkpoint keeps. All processes draw the same rows, and each
reads its share of a step, so that no result depends on their number. (The shuffle of `datasets` loses its
buffer when a run is killed, gives other shards to each process, and draws another order in other versions of
the library.)
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, NamedTuple

from compressors.errors import UsageError, quote
from experiments.config.schema_sections import OptimisationSettings
from experiments.data.streaming.rows import StreamedRow, draw_rows, measure_row_bytes
from experiments.data.streaming.shards import Shard

INPUT_SHARDS = 8  # each open one holds what its format reads at once: a row group of Parquet


class StreamEntry(NamedTuple):
    """The shards of an entry of the settings, and how often an epoch draws their rows."""

    name: str
    shards: Sequence[Shard]
    weight: float = 1.0


class Pass(NamedTuple):
    """A shard as an epoch reads it. With a `share` below 1 each row is drawn with that probability; `rows`:
    about how many are."""

    shard: Shard
    share: float
    rows: float


class Lane(NamedTuple):
    """A pass that is being read: its number in the epoch, and that of the row which comes next."""

    number: int
    row: int


class Position(NamedTuple):
    """Where a block begins.

    epoch   counted from 0
    block   of the epoch, counted from 0
    opened  passes of the epoch that have been opened
    lanes   those that are being read
    """

    epoch: int = 0
    block: int = 0
    opened: int = 0
    lanes: tuple[Lane, ...] = ()


class Mark(NamedTuple):
    """A block: the number of its first row, of all that a stage draws, and where it begins."""

    first_row: int
    position: Position


@dataclass
class StreamOrder:
    """Which rows each optimiser step reads; `optimisation.max_steps` says how many steps there are. Epochs
    follow each other without a gap, so that a step may have rows of two."""

    entries: Sequence[StreamEntry]
    optimisation: OptimisationSettings
    seed: int
    buffer: int
    marks: list[Mark] = field(default_factory=list)  # of the blocks that were drawn, without older ones

    @property
    def rows_per_step(self) -> int:
        """Rows of a step."""
        return self.optimisation.batch_size

    @property
    def steps(self) -> int:
        """Steps in all."""
        assert self.optimisation.max_steps is not None  # a cell that streams without is refused
        return self.optimisation.max_steps

    def iterate_batches(self, start: int = 0) -> Iterator[list[StreamedRow]]:
        """The rows of each step from `start` on."""
        if start >= self.steps:
            return
        size = self.rows_per_step
        first_row = start * size
        mark = self.find_mark(start)
        self.marks = []
        drawn = mark.first_row
        step = start
        batch: list[StreamedRow] = []
        for position, block in self.iterate_blocks(mark.position):
            self.marks.append(Mark(drawn, position))
            # the steps before `start` have read the first rows of the block
            unread = block[max(0, first_row - drawn) :]
            drawn += len(block)
            for row in unread:
                batch.append(row)
                if len(batch) < size:
                    continue
                yield batch
                batch = []
                step += 1
                if step == self.steps:
                    return

    def find_mark(self, step: int) -> Mark:
        """The last block that begins before a step's rows, or with them; without any, the first of all: rows
        are drawn again up to the step."""
        last_mark = Mark(0, Position())
        for mark in self.marks:
            if mark.first_row <= step * self.rows_per_step:
                last_mark = mark
        return last_mark

    def save_mark(self, step: int) -> list[Any]:
        """What a checkpoint keeps to go on with a step. Blocks before it are forgotten."""
        mark = self.find_mark(step)
        self.marks = [later for later in self.marks if later.first_row >= mark.first_row]
        epoch, block, opened, lanes = mark.position
        return [mark.first_row, epoch, block, opened, [list(lane) for lane in lanes]]

    def load_mark(self, content: Any) -> None:
        """Go on with what a checkpoint has kept. What is no such thing counts as none."""
        try:
            first_row, epoch, block, opened, lanes = content
            position = Position(epoch, block, opened, tuple(Lane(*lane) for lane in lanes))
        except (TypeError, ValueError):
            return
        numbers = [first_row, epoch, block, opened]
        for lane in position.lanes:
            numbers += lane
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            return
        passes = self.open_epoch(Position(epoch)).passes
        if opened <= len(passes) and all(lane.number < opened for lane in position.lanes):
            self.marks = [Mark(first_row, position)]

    def iterate_blocks(self, position: Position) -> Iterator[tuple[Position, list[StreamedRow]]]:
        """The blocks from a position on, without end, and where each begins. UsageError for an epoch without
        any row."""
        while True:
            epoch = self.open_epoch(position)
            while True:
                begins = epoch.locate()
                block = epoch.draw_block()
                if not block:
                    break
                yield begins, block
            if not begins.block:
                names = ",".join(entry.name for entry in self.entries)
                raise UsageError(f"{quote(names)}: an epoch draws no row of it; are its shards empty?")
            position = Position(position.epoch + 1)

    def open_epoch(self, position: Position) -> "StreamEpoch":
        """The epoch of a position, ready to draw the block that begins there."""
        seed = f"{self.seed}/{position.epoch}"
        passes: list[Pass] = []
        for entry, sizes in zip(self.entries, estimate_rows(self.entries)):
            whole, share = divmod(entry.weight, 1)
            for shard, rows in zip(entry.shards, sizes):
                passes += [Pass(shard, 1.0, rows)] * int(whole)
                if share:
                    passes.append(Pass(shard, share, rows * share))
        Random(f"{seed}/passes").shuffle(passes)
        return StreamEpoch(passes, seed, self.buffer, position)


class StreamEpoch:
    """An epoch that is being read.

    passes    in the order in which they are opened
    seed      of the epoch
    buffer    rows of a block
    position  where to begin
    """

    def __init__(self, passes: Sequence[Pass], seed: str, buffer: int, position: Position):
        self.passes = passes
        self.seed = seed
        self.buffer = buffer
        self.number = position.epoch
        self.block = position.block
        self.opened = position.opened
        self.lanes = [OpenLane(passes[lane.number], lane, seed) for lane in position.lanes]

    def locate(self) -> Position:
        """Where the next block begins."""
        lanes = tuple(Lane(lane.number, lane.next_row) for lane in self.lanes)
        return Position(self.number, self.block, self.opened, lanes)

    def draw_block(self) -> list[StreamedRow]:
        """The rows of the next block, shuffled; none at the epoch's end."""
        random = Random(f"{self.seed}/block/{self.block}")
        rows: list[StreamedRow] = []
        while len(rows) < self.buffer:
            self.open_lanes()
            if not self.lanes:
                break
            # in proportion to their rows: shards that are open together end together
            [lane] = random.choices(self.lanes, [lane.weight for lane in self.lanes])
            row = lane.draw_row()
            if row is None:
                self.lanes.remove(lane)
            else:
                rows.append(row)
        random.shuffle(rows)
        self.block += 1
        return rows

    def open_lanes(self) -> None:
        """Open as many passes as are read at a time."""
        while len(self.lanes) < INPUT_SHARDS and self.opened < len(self.passes):
            lane = Lane(self.opened, 0)
            self.lanes.append(OpenLane(self.passes[self.opened], lane, self.seed))
            self.opened += 1


class OpenLane:
    """A pass with its rows, from one on. Which rows a share draws follows from the epoch's seed, the pass and
    the row's number."""

    def __init__(self, reading: Pass, lane: Lane, seed: str):
        self.number = lane.number
        self.next_row = lane.row
        self.weight = reading.rows
        self.share = reading.share
        self.seed = f"{seed}/{lane.number}"
        self.rows = draw_rows(reading.shard, lane.row)

    def draw_row(self) -> StreamedRow | None:
        """The next row that is drawn; None at the end of the shard."""
        for row in self.rows:
            self.next_row = row.number + 1
            if self.share == 1 or Random(f"{self.seed}/{row.number}").random() < self.share:
                return row
        return None


def estimate_rows(entries: Sequence[StreamEntry]) -> list[list[float]]:
    """About how many rows each shard of each entry has, from its size; all alike where some have none that is
    known."""
    for entry in entries:
        if not all(shard.is_local and os.path.exists(shard.name) for shard in entry.shards):
            return [[1.0] * len(other.shards) for other in entries]
    estimates: list[list[float]] = []
    for entry in entries:
        row_bytes = measure_row_bytes(entry.name)
        estimates.append([max(1.0, os.path.getsize(shard.name) / row_bytes) for shard in entry.shards])
    return estimates
