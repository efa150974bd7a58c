"""What a stage's key holds of the data that it reads: digests of files, splits of the embedded data set,
streams, and how their rows are drawn.
"""

import os
from typing import Any

from compressors.errors import UsageError, quote
from compressors.registry import suggest
from experiments.config.schema import Config
from experiments.data import llava, stored
from experiments.data.formats import FILE_SUFFIXES
from experiments.data.roles import is_file_entry
from experiments.data.shares import read_weights
from experiments.data.streaming.rows import make_rules
from experiments.registries import datasets
from experiments.store import keys


def has_no_image(description: object) -> bool:
    """Whether what a role's data depends on is a file of text alone."""
    return isinstance(description, dict) and description["images"] == keys.NO_IMAGES


class DataDescriber:
    """The data of one configuration, by role."""

    def __init__(self, config: Config):
        self.config = config
        self.data = config.data

    def reads_splits(self, role: str) -> bool:
        """Whether a role has splits of the embedded data set, which is written first."""
        if self.config.streams(role):
            return False
        return not all(map(is_file_entry, getattr(self.data, role)))

    def describe_role(self, role: str) -> list[Any]:
        """An entry a file or split. UsageError without any, for one that is not there, and for files of text
        alone where images are compressed."""
        entries = getattr(self.data, role)
        if not entries:
            raise UsageError(f"data.{role}: no data; give data.{role}=FILE.json, or .jsonl, or a data set")
        if self.config.streams(role):
            return [self.describe_stream(role, entry) for entry in entries]
        descriptions = [self.describe_entry(role, entry) for entry in entries]
        if not self.config.blind and all(map(has_no_image, descriptions)):
            raise UsageError(
                f"data.{role}={quote(','.join(entries))}: no sample has an image, and compressor="
                f'{self.config.compressor} compresses some; name them under "image", or take compressor=none'
            )
        return descriptions

    def describe_entry(self, role: str, entry: str) -> Any:
        """A file's digests, or the name of a split."""
        if is_file_entry(entry):
            if entry.endswith(FILE_SUFFIXES) and not os.path.exists(entry):
                raise UsageError(f"data.{role}={quote(entry)}: no such file")
            return self.digest_file(entry)
        return self.check_split(role, entry)

    def describe_stream(self, role: str, entry: str) -> dict[str, str]:
        """What a stream depends on: its shards. Its first rows are checked."""
        if self.data.dataset is not None and entry in datasets.get(self.data.dataset).splits:
            raise UsageError(
                f"data.{role}={entry}: a split of {self.data.dataset} is not streamed; give shards, as "
                f"data.{role}=DIR/*.parquet, or leave data.streaming out"
            )
        try:
            rules = make_rules(self.config)
            description = keys.digest_stream(entry, rules, not self.config.blind, self.data.bad_rows)
        except UsageError as error:
            raise UsageError(f"data.{role}, streamed: {error}") from error
        if self.data.images and not self.config.blind:  # other pictures by the same names
            return {**description, "images": os.path.abspath(self.data.images)}
        return description

    def describe_drawing(self, role: str) -> dict[str, Any]:
        """In which order and how often the rows of a role are drawn, where an epoch has not each row once,
        shuffled with all others."""
        description: dict[str, Any] = {}
        weights = read_weights(self.config, role)
        if weights:
            description["weights"] = weights
        if self.config.streams(role):
            description["stream"] = {"buffer": self.data.shuffle_buffer}
        return description

    def digest_file(self, path: str) -> dict[str, str]:
        """A file's digests."""
        prompt = self.config.prompt
        with_images = not self.config.blind
        outside = self.data.outside_images
        return keys.digest_data_file(path, self.data.images, with_images, outside, prompt.end, prompt.system)

    def check_split(self, role: str, entry: str) -> str:
        """A split's name, or a UsageError if there is none such."""
        if self.data.dataset is None:
            raise UsageError(
                f"data.{role}={entry}: data.dataset is null, so give a path that ends in .json, .jsonl or "
                f".parquet, a data set's folder (./{entry}) or hf:NAME"
            )
        splits = datasets.get(self.data.dataset).splits
        if entry not in splits:
            hint = suggest(entry, splits)
            if os.path.isdir(entry):
                hint = f"; the folder of that name is data.{role}=./{entry}"
            raise UsageError(f"data.{role}={entry}: no split of {self.data.dataset}{hint}")
        return entry

    def describe_cached_role(self, role: str) -> list[Any]:
        """`describe_role` without the texts of files, which no feature depends on, and with the image folder
        of each: cached features are found by their images' paths, so those that were moved are other ones."""
        descriptions = self.describe_role(role)
        for number, path in enumerate(getattr(self.data, role)):
            if is_file_entry(path):
                folder = os.path.abspath(llava.find_image_folder(path, self.data.images))
                descriptions[number] = {"images": descriptions[number]["images"], "at": folder}
                if self.data.images and stored.is_dataset(path):  # which has images too
                    descriptions[number]["set"] = stored.locate_dataset(path)
        return descriptions
