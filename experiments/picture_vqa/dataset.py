"""PictureVQA, the embedded benchmark, written in LLaVA format.

Scenes of openly licensed named pictures and rendered words, with questions in six families whose answers
follow from the scene. The splits share no scene; `test_style` has a drawing style and fonts that training
never shows.
"""

import argparse
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.data import parquet
from experiments.picture_vqa.captions import INSTRUCTIONS, describe
from experiments.picture_vqa.pictures import SEEN_STYLES, UNSEEN_STYLES
from experiments.picture_vqa.questions import Question, ask
from experiments.picture_vqa.scenes import Scene, sample_scene
from experiments.picture_vqa.signs import SEEN_FONTS, UNSEEN_FONTS
from experiments.picture_vqa.statistics import statistics

GENERATOR_VERSION = 1  # any change to scenes, drawings or questions counts it up


@dataclass(frozen=True)
class Split:
    """How many scenes, and what they are drawn with."""

    scenes: int
    styles: tuple[str, ...] = SEEN_STYLES
    fonts: tuple[str, ...] = SEEN_FONTS


SPLITS = {
    "train": Split(6000),
    "tune": Split(300),
    "test": Split(500),
    "test_style": Split(300, UNSEEN_STYLES, UNSEEN_FONTS),
}
HELD_OUT = ("tune", "test", "test_style")
Progress = Callable[[int, int], None]


def write(
    out: Path, seed: int = 0, sizes: dict[str, int] | None = None, progress: Progress | None = None
) -> dict:
    """Writes the benchmark into `out` (new or empty) all at once and returns its manifest.

    `sizes` overrides the number of scenes of some splits; `progress` is called with (done, all) scenes.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder")
    sizes = _sizes(sizes or {})
    staging = out.absolute().parent / f".{out.name}.{os.getpid()}.part"
    staging.mkdir(parents=True)
    try:
        manifest = _write_all(staging, seed, sizes, progress or _silent)
        staging.rename(out)
    except BaseException:
        shutil.rmtree(staging)
        raise
    return manifest


def _silent(_done: int, _total: int) -> None:
    pass


def scene_of(split: str, index: int, seed: int = 0) -> tuple[Scene, list[Question]]:
    """One scene of a split and its conversation; every scene has a random stream of its own."""
    rng = random.Random(f"{GENERATOR_VERSION}/{seed}/{split}/{index}")
    scene = sample_scene(rng, SPLITS[split].styles, SPLITS[split].fonts)
    # The two presence turns go through all four yes/no pairs: one tells nothing about the other.
    return scene, ask(scene, rng, presence=(bool(index & 1), bool(index & 2)))


def _sizes(overrides: dict[str, int]) -> dict[str, int]:
    for split, size in overrides.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}, there are {', '.join(SPLITS)}")
        if size < 1:
            raise ValueError(f"split {split!r} needs at least one scene, got {size}")
    return {split: overrides.get(split, default.scenes) for split, default in SPLITS.items()}


def _write_all(folder: Path, seed: int, sizes: dict[str, int], progress: Progress) -> dict:
    from experiments.picture_vqa.contact_sheet import contact_sheet  # draws: not needed by --help

    records: dict[str, list[dict]] = {}
    total, before = sum(sizes.values()), 0
    for split, size in sizes.items():
        (folder / "images" / split).mkdir(parents=True)
        records[split] = []
        for index, record in enumerate(_write_split(folder, split, size, seed)):
            records[split].append(record)
            progress(before + index + 1, total)
        before += size
        _dump(folder / f"{split}.json", records[split])
    _dump(folder / "pretrain.json", [_caption(record, seed) for record in records["train"]])
    contact_sheet(folder, records["train"][:6] + records["test_style"][:3]).save(folder / "contact_sheet.png")
    manifest = {
        "name": "PictureVQA",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "sizes": sizes,
        "splits": {split: statistics(rows) for split, rows in records.items()},
    }
    _dump(folder / "manifest.json", manifest, indent=1)
    return manifest


def _write_split(folder: Path, split: str, size: int, seed: int) -> Iterator[dict]:
    from experiments.picture_vqa.drawing import draw

    for index in range(size):
        scene, turns = scene_of(split, index, seed)
        image = f"images/{split}/{index:06d}.png"
        draw(scene).save(folder / image, compress_level=3)
        yield _record(f"{split}-{index:06d}", image, scene, turns)


def _record(name: str, image: str, scene: Scene, turns: list[Question]) -> dict:
    pairs = [(turn.question, turn.answer) for turn in turns]
    return {
        "id": name,
        "image": image,
        "conversations": _conversation(pairs),
        "families": [turn.family for turn in turns],
        "kinds": [turn.kind for turn in turns],
        "scene": scene.to_dict(),
    }


def _conversation(pairs: list[tuple[str, str]]) -> list[dict]:
    turns = []
    for index, (question, answer) in enumerate(pairs):
        turns.append({"from": "human", "value": question if index else f"<image>\n{question}"})
        turns.append({"from": "gpt", "value": answer})
    return turns


def _caption(record: dict, seed: int) -> dict:
    """The stage 1 record of a training scene: an instruction and the dense description."""
    instruction = random.Random(f"{seed}/{record['id']}").choice(INSTRUCTIONS)
    caption = describe(Scene.from_dict(record["scene"]))
    conversation = _conversation([(instruction, caption)])
    return {
        "id": record["id"],
        "image": record["image"],
        "conversations": conversation,
        "families": ["caption"],
    }


def _dump(file: Path, data: list | dict, indent: int | None = None) -> None:
    file.write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 2 with one line on what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m experiments.picture_vqa", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="new folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="multiplies the number of scenes of every split"
    )
    parser.add_argument(
        "--parquet", action="store_true", help="the held-out splits as Parquet files too (needs pyarrow)"
    )
    options = parser.parse_args(arguments)
    sizes = {split: max(1, round(default.scenes * options.scale)) for split, default in SPLITS.items()}
    try:
        if options.parquet:
            parquet.require_pyarrow()
        manifest = _write_with_bar(options.out, options.seed, sizes)
        for split in HELD_OUT if options.parquet else ():
            parquet.write_parquet(options.out / f"{split}.json", options.out / f"{split}.parquet")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    scenes, questions = (sum(s[key] for s in manifest["splits"].values()) for key in ("scenes", "questions"))
    sys.stdout.write(f"{options.out}: {scenes} scenes, {questions} questions\n")
    return 0


def _write_with_bar(out: Path, seed: int, sizes: dict[str, int]) -> dict:
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("scenes")
        return write(out, seed, sizes, lambda done, total: bar.update(task, completed=done, total=total))


if __name__ == "__main__":
    sys.exit(main())
