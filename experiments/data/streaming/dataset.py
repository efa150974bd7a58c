"""Rows of a stream as encoded rows with their images: what `ConversationDataset` is to samples in memory."""

from typing import Any

from compressors.errors import UsageError
from experiments.config.schema import Config
from experiments.data.loader import ConversationDataset, Row, SampleImages
from experiments.data.records import Sample
from experiments.data.shares import read_weights
from experiments.data.streaming.order import StreamEntry, StreamOrder
from experiments.data.streaming.rows import RowRules, parse_row
from experiments.data.streaming.shards import open_stream
from llm_adapters.conversation import Encoded


class StreamedDataset(ConversationDataset):
    """Its keys are the rows themselves (`StreamedRow`). A row is looked at when it is read: UsageError, with
    its shard and number, for what is wrong with it, or longer than the LLM's positions.

    positions  of the language model; None: any number
    left_out   of them a crop takes beside its tokens
    owner      whose rows they are, as an error begins; "": the cell's
    bad_rows   that may be left out of steps
    """

    def __init__(
        self,
        images: SampleImages,
        max_length: int | None,
        rules: RowRules,
        positions: int | None = None,
        left_out: int = 0,
        owner: str = "",
        bad_rows: int = 0,
    ):
        super().__init__((), images, max_length)
        self.rules = rules
        self.positions = positions
        self.left_out = left_out
        self.owner = owner
        self.bad_rows = bad_rows

    def __getitem__(self, key: Any) -> Row:
        try:
            return super().__getitem__(key)
        except UsageError as error:
            if self.bad_rows:
                raise
            advice = "data.bad_rows=N goes on from the last checkpoint, without up to N such rows"
            raise UsageError(f"{error}; {advice}") from error

    def find_sample(self, key: Any) -> Sample:
        """The sample in a row."""
        return parse_row(key, self.rules)

    def encode_sample(self, sample: Sample) -> Encoded:
        """The tokens of a sample that has been checked against the positions."""
        encoded = super().encode_sample(sample)
        try:
            self.check_row_positions(sample, encoded, self.positions, left_out=self.left_out)
        except UsageError as error:
            raise UsageError(f"{self.owner}{error}") from error
        return encoded


def make_stream_order(config: Config, stage: str, role: str) -> StreamOrder:
    """Which rows each step of a stage reads."""
    names = getattr(config.data, role)
    weights = read_weights(config, role) or [1.0] * len(names)
    entries: list[StreamEntry] = []
    for name, weight in zip(names, weights):
        entries.append(StreamEntry(name, open_stream(name).shards, weight))
    return StreamOrder(entries, getattr(config, stage), config.seed, config.data.shuffle_buffer)
