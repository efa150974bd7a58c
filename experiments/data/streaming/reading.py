"""The rows of a shard, one by one, from any of them on. No torch."""

import json
from collections.abc import Iterator
from typing import Any

from compressors.errors import UsageError, shorten_reason
from experiments.data import stored
from experiments.data.stored_images import StreamedImage, is_image_feature
from experiments.data.streaming.shards import Shard, open_stream

ROWS_AT_ONCE = 64  # of a shard that are in memory as Python objects


def read_rows(shard: Shard, start: int = 0) -> Iterator[tuple[int, Any]]:
    """(number, record) of a shard's rows from number `start` on, counted from 0; of JSON lines the text of
    each that is not empty. UsageError for a shard that cannot be read."""
    features = open_stream(shard.entry).dataset.features or {}
    tables = read_tables(shard, start)
    while True:
        try:
            first, table = next(tables, (0, None))
        # damaged files and broken connections raise anything
        except Exception as error:
            raise UsageError(f"{shard.name}: cannot be read ({shorten_reason(error)})") from error
        if table is None:
            return
        skipped = max(0, start - first)
        yield from list_rows(shard, table.slice(skipped), first + skipped, features)


def read_tables(shard: Shard, start: int) -> Iterator[tuple[int, Any]]:
    """Tables (pyarrow) of a few rows each with the numbers of their first rows, from the one with row `start`
    on."""
    if shard.is_local and shard.name.endswith(stored.PARQUET_SUFFIX):
        yield from read_local_parquet(shard.name, start)
        return
    opened = open_stream(shard.entry)
    one = opened.dataset.shard(num_shards=len(opened.shards), index=shard.number)
    first = 0
    for table in one.with_format("arrow").iter(batch_size=ROWS_AT_ONCE):
        if first + len(table) > start:
            yield first, table
        first += len(table)


def read_local_parquet(path: str, start: int) -> Iterator[tuple[int, Any]]:
    """`read_tables` of a file: a row group is in memory, where `datasets` keeps all that it has read of an
    open file."""
    from pyarrow import Table  # comes with datasets
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path, pre_buffer=False) as file:
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if first + rows <= start:
                first += rows
                continue
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=[group], use_threads=False):
                if first + len(batch) > start:
                    yield first, Table.from_batches([batch])
                first += len(batch)


def list_rows(shard: Shard, table: Any, first: int, features: Any) -> Iterator[tuple[int, Any]]:
    """(number, record) of a table (pyarrow) that begins with row `first` of a shard."""
    if shard.lines:
        [lines] = table.itercolumns()
        for number, line in enumerate(lines.to_pylist(), first):
            if line.strip():
                yield number, line
        return
    columns = {name: table[name].to_pylist() for name in table.column_names}
    for position in range(len(table)):
        number = first + position
        record: dict[str, Any] = {}
        for name, values in columns.items():
            value = values[position]
            if name in features and is_image_feature(features[name]):
                value = list_streamed_images(value, shard.describe_row(number), name)
            record[name] = value
        yield number, record


def list_streamed_images(cell: Any, place: str, column: str) -> list[Any]:
    """What a record has for a cell of an image column: pictures, names of files, or None for a picture of
    nothing."""
    if cell is None:
        return []
    structs = cell if isinstance(cell, list) else [cell]
    images: list[Any] = []
    for number, struct in enumerate(structs):
        if struct is None or struct["bytes"] is None:
            images.append(struct and struct["path"])
        else:
            images.append(StreamedImage(struct["bytes"], place, column, number))
    return images


def count_row_bytes(content: Any) -> int:
    """About how large a record is: its texts and pictures."""
    if isinstance(content, StreamedImage):
        return len(content.encoded)
    if isinstance(content, dict):
        return sum(map(count_row_bytes, content.values()))
    if isinstance(content, list):
        return sum(map(count_row_bytes, content))
    return len(content if isinstance(content, str) else json.dumps(content, default=str))
