"""PictureVQA, the embedded benchmark, written in LLaVA format.

Scenes of openly licensed named pictures and rendered words, with questions in six families whose answers
follow from the scene. The splits share no scene; `test_style` has a drawing style and fonts that training
never shows.
"""

import json
import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.data.embedded import EmbeddedDataset, ProgressFunction
from experiments.picture_vqa.captions import CAPTION_INSTRUCTIONS, describe_scene
from experiments.picture_vqa.contact_sheet import draw_contact_sheet
from experiments.picture_vqa.drawing import draw_scene
from experiments.picture_vqa.pictures import SEEN_STYLES, UNSEEN_STYLES
from experiments.picture_vqa.questions import QUESTION_FAMILIES, Question, ask_questions
from experiments.picture_vqa.scenes import Scene, sample_scene
from experiments.picture_vqa.signs import SEEN_FONTS, UNSEEN_FONTS
from experiments.picture_vqa.statistics import count_statistics

GENERATOR_VERSION = 1  # any change to scenes, drawings or questions counts it up


@dataclass(frozen=True)
class SplitRecipe:
    """How many scenes, and what they are drawn with."""

    scenes: int
    styles: tuple[str, ...] = SEEN_STYLES
    fonts: tuple[str, ...] = SEEN_FONTS


SPLITS = {
    "train": SplitRecipe(6000),
    "tune": SplitRecipe(300),
    "test": SplitRecipe(500),
    "test_style": SplitRecipe(300, UNSEEN_STYLES, UNSEEN_FONTS),
}
HELD_OUT_SPLITS = ("tune", "test", "test_style")

Record = dict[str, Any]  # a JSON object


class PictureVQA(EmbeddedDataset):
    """Scenes of named pictures and signs, six families of questions whose answers follow from the scene."""

    version = GENERATOR_VERSION
    splits = ("pretrain", *SPLITS)
    families = QUESTION_FAMILIES

    def count_sizes(self) -> dict[str, int]:
        """How many scenes each split has at this scale; at least one."""
        return {name: max(1, round(split.scenes * self.scale)) for name, split in SPLITS.items()}

    def count_scenes(self) -> int:
        """Scenes of all splits together, for the progress bar."""
        return sum(self.count_sizes().values())

    def write(self, folder: Path, progress: ProgressFunction) -> dict[str, Any]:
        """Write all splits at this seed and scale; the manifest."""
        return write_picture_vqa(folder, self.seed, self.count_sizes(), progress)


def write_picture_vqa(
    out: Path,
    seed: int = 0,
    sizes: dict[str, int] | None = None,
    progress: ProgressFunction | None = None,
) -> dict[str, Any]:
    """Write the benchmark into `out` (new or empty) all at once and return its manifest.

    `sizes` overrides the number of scenes of some splits; `progress` is called with (done, all) scenes.
    FileExistsError where `out` has something in it, ValueError for a split that there is not.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder")
    complete_sizes = complete_split_sizes(sizes or {})
    staging = out.absolute().parent / f".{out.name}.{os.getpid()}.part"
    staging.mkdir(parents=True)
    try:
        manifest = _write_files(staging, seed, complete_sizes, progress or _ignore_progress)
        staging.rename(out)
    except BaseException:
        # Ctrl-C as well: nobody may take half a benchmark for a whole one
        shutil.rmtree(staging)
        raise
    return manifest


def _ignore_progress(_done: int, _total: int) -> None:
    """Nobody looks on."""


def make_scene(split: str, index: int, seed: int = 0) -> tuple[Scene, list[Question]]:
    """One scene of a split and its conversation; every scene has a random stream of its own."""
    rng = random.Random(f"{GENERATOR_VERSION}/{seed}/{split}/{index}")
    scene = sample_scene(rng, SPLITS[split].styles, SPLITS[split].fonts)
    # The two presence turns go through all four yes/no pairs: one tells nothing about the other.
    presence = (bool(index & 1), bool(index & 2))
    return scene, ask_questions(scene, rng, presence=presence)


def complete_split_sizes(overrides: dict[str, int]) -> dict[str, int]:
    """Scenes of every split; ValueError for a split that there is not, and for none of one that there is."""
    for split, size in overrides.items():
        if split not in SPLITS:
            raise ValueError(f"unknown split {split!r}, there are {', '.join(SPLITS)}")
        if size < 1:
            raise ValueError(f"split {split!r} needs at least one scene, got {size}")
    return {split: overrides.get(split, default.scenes) for split, default in SPLITS.items()}


def _write_files(
    folder: Path, seed: int, sizes: dict[str, int], progress: ProgressFunction
) -> dict[str, Any]:
    """Write images and JSON files of all splits, and the manifest."""
    records: dict[str, list[Record]] = {}
    total = sum(sizes.values())
    done = 0
    for split, size in sizes.items():
        (folder / "images" / split).mkdir(parents=True)
        records[split] = []
        for record in _write_split(folder, split, size, seed):
            records[split].append(record)
            done += 1
            progress(done, total)
        _write_json(folder / f"{split}.json", records[split])
    captions = [_make_caption_record(record, seed) for record in records["train"]]
    _write_json(folder / "pretrain.json", captions)
    # enough of both styles to see on one page what the data are like
    sheet_records = records["train"][:6] + records["test_style"][:3]
    draw_contact_sheet(folder, sheet_records).save(folder / "contact_sheet.png")
    manifest = {
        "name": "PictureVQA",
        "generator_version": GENERATOR_VERSION,
        "seed": seed,
        "sizes": sizes,
        "splits": {split: count_statistics(rows) for split, rows in records.items()},
    }
    _write_json(folder / "manifest.json", manifest, indent=1)
    return manifest


def _write_split(folder: Path, split: str, size: int, seed: int) -> Iterator[Record]:
    """The images of a split, and its records one by one."""
    for index in range(size):
        scene, turns = make_scene(split, index, seed)
        image = f"images/{split}/{index:06d}.png"
        draw_scene(scene).save(folder / image, compress_level=3)
        yield _make_record(f"{split}-{index:06d}", image, scene, turns)


def _make_record(name: str, image: str, scene: Scene, turns: list[Question]) -> Record:
    """A sample in LLaVA format, with the scene that it was drawn from."""
    pairs = []
    families = []
    kinds = []
    for turn in turns:
        pairs.append((turn.question, turn.answer))
        families.append(turn.family)
        kinds.append(turn.kind)
    return {
        "id": name,
        "image": image,
        "conversations": _make_conversation(pairs),
        "families": families,
        "kinds": kinds,
        "scene": scene.to_dict(),
    }


def _make_conversation(pairs: list[tuple[str, str]]) -> list[Record]:
    """Questions and answers as LLaVA's turns; the image stands before the first question."""
    turns = []
    for index, (question, answer) in enumerate(pairs):
        if index == 0:
            question = f"<image>\n{question}"
        turns.append({"from": "human", "value": question})
        turns.append({"from": "gpt", "value": answer})
    return turns


def _make_caption_record(record: Record, seed: int) -> Record:
    """The stage 1 record of a training scene: an instruction and the dense description."""
    instruction = random.Random(f"{seed}/{record['id']}").choice(CAPTION_INSTRUCTIONS)
    caption = describe_scene(Scene.from_dict(record["scene"]))
    conversation = _make_conversation([(instruction, caption)])
    return {
        "id": record["id"],
        "image": record["image"],
        "conversations": conversation,
        "families": ["caption"],
    }


def _write_json(file: Path, data: list[Record] | Record, indent: int | None = None) -> None:
    file.write_text(json.dumps(data, indent=indent) + "\n", encoding="utf-8")
