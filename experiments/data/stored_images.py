"""Rows of data sets as records, in which images stand that are read from Arrow files when they are looked at,
or that a stream has brought along.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from experiments.data.stored import locate_dataset, open_dataset

IMAGE_FIELDS = {"bytes", "path"}  # of an image in Arrow
ROWS_AT_ONCE = 1000


class StoredImage(NamedTuple):
    """An image in a data set's Arrow files. As a path it is a name that no file has, the same in every run.

    entry   of the settings, which names the data set
    column  "image" or "images"
    row     counted from 0
    number  of the row's images
    """

    entry: str
    column: str
    row: int
    number: int

    def __fspath__(self) -> str:
        return f"{locate_dataset(self.entry)}/{self.column}/{self.row}/{self.number}"

    def __str__(self) -> str:
        return f"{self.entry}, row {self.row}, {self.column} {self.number}"

    @property
    def name(self) -> str:
        """What it would be called as a file."""
        return f"{self.row}-{self.number}"

    def read_bytes(self) -> bytes:
        """The encoded picture."""
        # as Arrow has it: `datasets` would decode all images of the row
        rows = open_dataset(self.entry).select_columns([self.column]).with_format("arrow")
        cell = rows[self.row : self.row + 1][self.column][0]
        if hasattr(cell.type, "value_type"):  # a list of images
            cell = cell.values[self.number]
        encoded: bytes = cell["bytes"].as_py()
        return encoded

    def open(self) -> BytesIO:
        """The encoded picture as a file."""
        return BytesIO(self.read_bytes())


class StreamedImage(NamedTuple):
    """An image of a row that is streamed, in memory. As a path it is a name that no file has.

    encoded  the picture's bytes, as its shard has them
    place    of the row, which names the shard
    column   "image" or "images"
    number   of the row's images
    """

    encoded: bytes
    place: str
    column: str
    number: int

    def __fspath__(self) -> str:
        return f"/{self}"

    def __str__(self) -> str:
        return f"{self.place}, {self.column} {self.number}"

    @property
    def name(self) -> str:
        """What it would be called as a file."""
        return str(self)

    def read_bytes(self) -> bytes:
        """The encoded picture."""
        return self.encoded

    def open(self) -> BytesIO:
        """The encoded picture as a file."""
        return BytesIO(self.encoded)


EncodedImage = StoredImage | StreamedImage


def read_records(path: Path | str) -> list[tuple[int, dict[str, Any]]]:
    """(row, record) of a data set; pictures are neither read nor decoded, `StoredImage`s stand for them."""
    entry = str(path)
    opened = open_dataset(entry)
    records: list[tuple[int, dict[str, Any]]] = []
    rows = opened.with_format("arrow")
    for start in range(0, len(opened), ROWS_AT_ONCE):
        table = rows[start : start + ROWS_AT_ONCE]
        columns: dict[str, list[Any]] = {}
        for name in table.column_names:
            if is_image_feature(opened.features[name]):
                columns[name] = list(list_images(entry, name, start, table[name]))
            else:
                columns[name] = table[name].to_pylist()
        for number in range(len(table)):
            record = {name: values[number] for name, values in columns.items()}
            records.append((start + number, record))
    return records


def is_image_feature(feature: Any) -> bool:
    """Whether a column has images, or lists of them; a Parquet file that `datasets` has not written may have
    their bytes and nothing that says so."""
    import datasets

    inner = getattr(feature, "feature", feature)  # of a list
    if isinstance(inner, dict):
        return inner.keys() == IMAGE_FIELDS
    return isinstance(inner, datasets.Image)


def list_images(entry: str, column: str, start: int, cells: Any) -> Iterator[Any]:
    """What a record has for each cell of an image column (pyarrow, from row `start` on): images in the file,
    names of files beside it, or None."""
    row = start
    for chunk in cells.chunks:
        is_list = hasattr(chunk.type, "value_type")
        structs = chunk.flatten() if is_list else chunk
        # whether there are bytes is known without reading them
        has_bytes = structs.field("bytes").is_valid().to_pylist()
        names = structs.field("path").to_pylist()
        counts = [int(is_there) for is_there in structs.is_valid().to_pylist()]
        if is_list:
            counts = [count or 0 for count in chunk.value_lengths().to_pylist()]
        position = 0
        for count in counts:
            images: list[Any] = []
            for number in range(count):
                if has_bytes[position + number]:
                    images.append(StoredImage(entry, column, row, number))
                else:
                    images.append(names[position + number])
            # a cell without an image takes a place of its own, a list without one does not
            position += count if is_list else 1
            row += 1
            yield images
