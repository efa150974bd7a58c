"""LLaVA-format data as Parquet, a row a question, as evaluation harnesses read it.

    id string, images list of {bytes, path}, question string, answer string, family string

`images` are those shown up to the question, as the files are; the schema tells Hugging Face's `datasets` that
they are images. A question says `<image>` only where an image stands inside its text. Needs pyarrow.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from compressors.command_line import run_guarded
from compressors.errors import UsageError
from experiments.data import llava
from experiments.metrics.answers import UNNAMED_FAMILY
from experiments.runtime.command import CommandParser
from llm_adapters.conversation import IMAGE

STRING_FEATURE = {"dtype": "string", "_type": "Value"}
DATASET_FEATURES = {
    "id": STRING_FEATURE,
    "images": {"feature": {"_type": "Image"}, "_type": "List"},
    "question": STRING_FEATURE,
    "answer": STRING_FEATURE,
    "family": STRING_FEATURE,
}
ROWS_PER_GROUP = 1000  # of a row group
DICTIONARY_BYTES = 1 << 26  # bytes of a row group's different images, stored once each


def write_parquet(source: Path, out: Path, images: Path | None = None) -> int:
    """Every question of a LLaVA-format JSON file into one Parquet file; how many. `images`: as `llava.load_samples`.
    UsageError without pyarrow, and for what is wrong with the data."""
    require_pyarrow()
    import pyarrow
    from pyarrow import parquet

    asked = llava.split_questions(llava.load_samples(source, images))
    text = pyarrow.string()
    picture = pyarrow.struct([("bytes", pyarrow.binary()), ("path", text)])
    columns = {name: pyarrow.list_(picture) if name == "images" else text for name in DATASET_FEATURES}
    told = json.dumps({"info": {"features": DATASET_FEATURES}})
    schema = pyarrow.schema(list(columns.items()), metadata={"huggingface": told})
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    options = {"compression": "zstd", "dictionary_pagesize_limit": DICTIONARY_BYTES}
    try:
        with parquet.ParquetWriter(part, schema, **options) as file:
            for start in range(0, len(asked), ROWS_PER_GROUP):
                found = list(make_question_rows(asked[start : start + ROWS_PER_GROUP]))
                file.write_table(pyarrow.Table.from_pylist(found, schema))
        part.rename(out)
    finally:
        part.unlink(missing_ok=True)
    return len(asked)


def require_pyarrow() -> None:
    """UsageError without pyarrow."""
    if not find_spec("pyarrow"):
        raise UsageError("Parquet files need pyarrow, which is not installed; pip install pyarrow")


def make_question_rows(asked: Sequence[llava.Sample]) -> Iterator[dict]:
    """One-question samples as rows."""
    for sample in asked:
        question, answer = sample.turns[0]
        before = f"{IMAGE}\n" * len(sample.images)
        images = [{"bytes": path.read_bytes(), "path": path.name} for path in sample.images]
        yield {
            "id": sample.id,
            "images": images,
            "question": question.removeprefix(before),
            "answer": answer,
            "family": sample.families[0] if sample.families else UNNAMED_FAMILY,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = CommandParser(
        prog="python -m experiments.data.parquet",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="LLaVA-format JSON, such as picture_vqa/test.json")
    parser.add_argument("out", type=Path, help="Parquet file to write")
    parser.add_argument("--images", type=Path, help="folder of its images (that of the JSON)")

    def run() -> int:
        given = parser.parse_args(arguments)
        count = write_parquet(given.source, given.out, given.images)
        sys.stdout.write(f"{given.out}: {count} questions\n")
        return 0

    return run_guarded(run, "write to another place")


if __name__ == "__main__":
    sys.exit(main())
