"""Shards of a few rows with tiny pictures, in every format that is streamed."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import datasets
from factories import picture

from experiments.runtime.memory import begin_request

SIZES = (7, 12, 3, 9)  # rows of each shard
MESSAGES = datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")})
FEATURES = datasets.Features(
    id=datasets.Value("string"), images=datasets.List(datasets.Image()), messages=MESSAGES
)


def make_row(number: int) -> dict:
    """A conversation of one or two turns; every fifth has no picture."""
    messages = []
    for turn in range(1 + number % 2):
        question = f"what is {'a ' * (number % 3)}this {turn} ?"
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": f"a dog {'and a cat ' * (number % 4)}{number}"})
    images = [] if number % 5 == 0 else [picture(number, (24, 20))]
    return {"id": str(number), "images": images, "messages": messages}


def cut_rows(sizes=SIZES) -> list[list[dict]]:
    """The rows of each shard."""
    shards = []
    first = 0
    for size in sizes:
        shards.append([make_row(number) for number in range(first, first + size)])
        first += size
    return shards


def write_parquet(folder: Path, sizes=SIZES) -> str:
    folder.mkdir()
    for number, rows in enumerate(cut_rows(sizes)):
        dataset = datasets.Dataset.from_list(rows, features=FEATURES)
        dataset.to_parquet(folder / f"train-{number:05}.parquet", batch_size=4)
    return f"{folder}/*.parquet"


def write_lines(folder: Path, sizes=SIZES) -> str:
    """JSON lines, with an empty line in each, and texts of one and the other form."""
    folder.mkdir()
    for number, rows in enumerate(cut_rows(sizes)):
        lines = []
        for row in rows:
            names = []
            for image in row["images"]:
                image.save(folder / f"{row['id']}.png")
                names.append(f"{row['id']}.png")
            if int(row["id"]) % 2:  # content as parts
                for message in row["messages"]:
                    message["content"] = [{"type": "text", "text": message["content"]}]
            lines.append(json.dumps({**row, "images": names}))
        lines.insert(1, "")
        (folder / f"part-{number}.jsonl").write_text("\n".join(lines))
    return f"{folder}/*.jsonl"


def write_saved(folder: Path, sizes=SIZES) -> str:
    rows = [row for shard in cut_rows(sizes) for row in shard]
    datasets.Dataset.from_list(rows, features=FEATURES).save_to_disk(folder, num_shards=len(sizes))
    return str(folder)


def write_folder(folder: Path, sizes=SIZES) -> str:
    """Parquet that `load_dataset` sorts into splits; the other one has rows of its own."""
    write_parquet(folder, sizes)
    datasets.Dataset.from_list([make_row(900)], features=FEATURES).to_parquet(folder / "test-00000.parquet")
    return f"hf:{folder}"


WRITERS = {"parquet": write_parquet, "lines": write_lines, "saved": write_saved, "folder": write_folder}


@contextmanager
def own_cache(folder: Path, monkeypatch) -> Iterator[None]:
    """A cache of `datasets` in a folder of the test's own, and nothing opened once the test has ended."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    datasets.disable_progress_bars()
    yield
    begin_request()
