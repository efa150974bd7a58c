"""LLaVA-format data as Parquet, a row a question, as evaluation harnesses read it.

    id string, images list of {bytes, path}, question string, answer string, family string
    accepted list of string, where any question has several answers that are right

`images` are those shown up to the question, as the files are; the schema tells Hugging Face's `datasets` that
they are images. A question says `<image>` only where an image stands inside its text. Needs pyarrow.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.setting_fields import setting
from experiments.data import llava
from llm_adapters.conversation import IMAGE

STRING_FEATURE = {"dtype": "string", "_type": "Value"}
DATASET_FEATURES = {
    "id": STRING_FEATURE,
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "question": STRING_FEATURE,
    "answer": STRING_FEATURE,
    "family": STRING_FEATURE,
}
ACCEPTED_FEATURE = {"feature": STRING_FEATURE, "_type": "List"}
ROWS_PER_GROUP = 1000
DICTIONARY_BYTES = 1 << 26  # of a row group's different images, stored once each


@dataclass(frozen=True)
class ParquetOptions:
    """Settings of the command."""

    images: Path | None = setting(None, "folder of the images; null: that of the JSON file")
    outside_images: bool = setting(False, "images may lie outside of it: absolute names and ..")


COMMAND = Command(
    usage="python -m experiments.data.parquet DATA.json DATA.parquet [images=DIR] [outside_images=true]",
    description=__doc__,
    options=ParquetOptions,
    words=(2, 2),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(convert_file, arguments)


def convert_file(line: CommandLine) -> int:
    """Write the second word from the first."""
    source, target = map(Path, line.words)
    count = write_parquet(source, target, line.options.images, line.options.outside_images)
    sys.stdout.write(f"{target}: {count} questions\n")
    return 0


def write_parquet(source: Path, out: Path, images: Path | None = None, outside_images: bool = False) -> int:
    """Every question of a LLaVA-format JSON file into one Parquet file; how many. `images` and
    `outside_images`: as for `llava.load_samples`. UsageError without pyarrow, and for what is wrong with the
    data."""
    require_pyarrow()
    # an optional package, and half a second of import
    import pyarrow
    from pyarrow import parquet

    questions = llava.split_questions(llava.load_samples(source, images, outside_images=outside_images))
    text = pyarrow.string()
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    columns = {name: text for name in DATASET_FEATURES}
    columns["images"] = pyarrow.list_(picture)
    dataset_features = dict(DATASET_FEATURES)
    if any(question.accepted for question in questions):
        columns["accepted"] = pyarrow.list_(text)
        dataset_features["accepted"] = ACCEPTED_FEATURE
    # where Hugging Face's `datasets` looks for the types of columns
    features = json.dumps({"info": {"features": dataset_features}})
    schema = pyarrow.schema(list(columns.items()), metadata={"huggingface": features})

    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    options = {"compression": "zstd", "dictionary_pagesize_limit": DICTIONARY_BYTES}
    try:
        with parquet.ParquetWriter(part, schema, **options) as file:
            for start in range(0, len(questions), ROWS_PER_GROUP):
                rows = list(make_question_rows(questions[start : start + ROWS_PER_GROUP]))
                file.write_table(pyarrow.Table.from_pylist(rows, schema))
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    return len(questions)


def require_pyarrow() -> None:
    """UsageError without pyarrow."""
    if not find_spec("pyarrow"):
        raise UsageError("Parquet files need pyarrow, which is not installed; pip install pyarrow")


def make_question_rows(questions: Sequence[llava.Sample]) -> Iterator[dict[str, Any]]:
    """One-question samples as rows."""
    for sample in questions:
        question, answer = sample.turns[0]
        row: dict[str, Any] = {"id": sample.id}
        row["images"] = [{"bytes": path.read_bytes(), "path": path.name} for path in sample.images]
        # harnesses put images that stand before or behind the question before it themselves
        texts = list(filter(None, map(str.strip, question.split(IMAGE))))
        row["question"] = texts[0] if len(texts) == 1 else question
        row["answer"] = answer
        row["family"] = sample.name_family()
        if sample.accepted:
            row["accepted"] = list(sample.accepted[0])
        yield row


if __name__ == "__main__":
    sys.exit(main())
