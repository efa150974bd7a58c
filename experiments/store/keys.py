"""What a stage's key knows of the outside: the content of data files, images and weights. No torch."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from compressors.errors import UsageError, quote
from connectors.hub import MODEL_FILES, PICKLED_FILES, is_open_clip, split_open_clip
from experiments.config.metric_names import JUDGE_PROMPT, asks_judge
from experiments.config.schema import Config
from experiments.config.sources import ASSET_SCHEME, CACHE_SCHEME, resolve_source
from experiments.config.trained import find_judge_folder, find_teacher, find_trained_model
from experiments.data import llava, stored
from experiments.data.stored_images import StoredImage
from experiments.data.streaming.rows import RowRules, check_first_rows
from experiments.data.streaming.shards import describe_shards, open_stream
from experiments.runtime.memory import remember_for_request

NO_IMAGES = hashlib.sha256().hexdigest()  # what `digest_data_file` has for the images of text alone
CHUNK_BYTES = 1 << 20  # weights are larger than memory should hold at once


def digest_value(value: object) -> str:
    """sha256 of a JSON-able value, the same whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@remember_for_request()
def digest_source(name: str) -> object:
    """Describe weights for a key.

    `asset:` and `cache:` by their files' content, other folders by names, sizes and times of their files, a
    checkpoint of open_clip by its content, anything else, such as a hub id, by its name. UsageError for a
    folder without a model.
    """
    if is_open_clip(name):
        architecture, weights = split_open_clip(name)
        if os.path.isfile(weights):
            stat = os.stat(weights)
            digest = digest_unchanged_file(Path(weights), stat.st_size, stat.st_mtime_ns)
            return {architecture: digest}
        return name
    folder = Path(resolve_source(name))
    if not folder.is_dir():
        return name
    if not any(folder.glob("*config.json")):  # it may be any folder, with all that is below it
        raise UsageError(
            f"{quote(name)}: a folder without config.json; give that of a tower or language model"
        )
    # the times of what ships with the package, or is fetched into a cache, only say when it was installed
    by_content = name.startswith((ASSET_SCHEME, CACHE_SCHEME))
    files: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        stat = path.stat()
        if by_content:
            digest = digest_unchanged_file(path, stat.st_size, stat.st_mtime_ns)
            files[str(path.relative_to(folder))] = digest
        else:
            files[str(path.relative_to(folder))] = [stat.st_size, stat.st_mtime_ns]
    return files


def describe_trained_models(config: Config, stage: str) -> dict[str, Any]:
    """Describe the model that a stage of training starts from, and its teacher; nothing where it has none."""
    description: dict[str, Any] = {}
    start = config.find_start(stage)
    if start is not None:
        folder = find_trained_model(start.source, config.out, start.path)
        # spelling out parts that the cell has anyway changes no key
        parts = [part for part in start.parts if part != "query_module" or config.query_module]
        description["init"] = {"model": digest_trained_model(folder), "parts": parts}
    if stage == "finetune" and config.has_teacher:
        settings = config.finetune
        description["teacher"] = {
            "model": digest_trained_model(find_teacher(config)),
            "weight": settings.teacher_weight,
            "temperature": settings.teacher_temperature,
        }
    return description


def describe_judge(config: Config) -> dict[str, Any]:
    """Describe the model that judges answers, and what it is asked; nothing where none does."""
    if not asks_judge(config):
        return {}
    settings = dict(vars(config.judge))
    assert config.judge.model is not None  # a cell whose judge has no name is refused
    settings["model"] = digest_trained_model(find_judge_folder(config.judge.model))
    settings["prompt"] = config.judge.prompt or JUDGE_PROMPT
    return {"judge": settings}


def digest_trained_model(folder: Path) -> str:
    """sha256 of a saved model: of the content of its weights and settings, wherever it lies."""
    patterns = list(MODEL_FILES)
    if not any(folder.glob("*.safetensors")):
        patterns += PICKLED_FILES  # which are its weights, then
    digests: dict[str, str] = {}
    for pattern in patterns:
        for path in folder.glob(pattern):
            stat = path.stat()
            digests[path.name] = digest_unchanged_file(path, stat.st_size, stat.st_mtime_ns)
    return digest_value(digests)


@cache
def digest_unchanged_file(path: Path, size: int, modified: int) -> str:  # noqa: ARG001  what it is cached by
    """`digest_file`, once for all cells that read a file."""
    return digest_file(path)


def digest_texts(samples: Sequence[llava.Sample], root: Path) -> str:
    """sha256 of all that samples say, and of which images they show, by their names from `root`."""
    digest = hashlib.sha256()
    for sample in samples:
        images: list[object] = []
        for image in sample.images:
            if isinstance(image, StoredImage):
                images.append([image.column, image.row, image.number])
            else:
                images.append(os.path.relpath(image, root))
        content = [sample.id, images, sample.turns, sample.families, sample.accepted]
        digest.update(digest_value(content).encode())
    return digest.hexdigest()


def digest_data_file(path: str, *arguments: Any) -> dict[str, str]:
    """`digest_unchanged_data`, once for all cells that read a file, and again where it was edited since."""
    return digest_unchanged_data(make_stamp(path), path, *arguments)


def make_stamp(path: str) -> str:
    """What changes when a data file is written again."""
    if stored.is_dataset(path):
        return digest_value(stored.describe_files(path))
    if not os.path.isfile(path):  # which reading it says in its own words
        return ""
    return digest_value(stored.describe_file(path))


@remember_for_request()
def digest_unchanged_data(
    stamp: str,  # noqa: ARG001  what it is cached by
    path: str,
    images: str | None,
    with_images: bool,
    outside_images: bool = False,
    end: str = "",
    system: str | None = None,
) -> dict[str, str]:
    """Describe a data file for a key: its content, and its images by name, size and time; of a data set its
    texts, and its Arrow files by name, size and time, if they hold images.

    All of the file is validated on the way, as by `llava.load_samples`. UsageError for what is wrong with it.
    """
    image_folder = Path(images) if images else None
    samples = llava.load_samples(Path(path), image_folder, with_images, outside_images, end, system)
    is_dataset = stored.is_dataset(path)
    # names start at the image folder, so that data that was moved keeps its key
    root = llava.find_image_folder(Path(path), image_folder)
    digests = {"texts": digest_texts(samples, root)} if is_dataset else {"json": digest_file(Path(path))}
    if with_images:
        image_paths: set[str] = set()
        has_stored_images = False
        for sample in samples:
            for image in sample.images:
                if isinstance(image, StoredImage):
                    has_stored_images = True
                else:
                    image_paths.add(str(image))
        listing = hashlib.sha256()
        for name in sorted(image_paths):
            stat = os.stat(name)
            listing.update(f"{os.path.relpath(name, root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        if has_stored_images:
            listing.update(digest_value(stored.describe_files(path)).encode())
        digests["images"] = listing.hexdigest()
    return digests


def forget_read_files() -> None:
    """Have weights, data files with their images, and streams read again, which are remembered since the
    plan."""
    digest_source.cache_clear()
    digest_unchanged_data.cache_clear()  # its stamp tells of the file alone
    digest_stream.cache_clear()
    open_stream.cache_clear()


@remember_for_request()
def digest_stream(entry: str, rules: RowRules, with_images: bool, bad_rows: int = 0) -> dict[str, str]:
    """Describe data that are streamed for a key: their shards by name, size and time, on the hub by the
    commit. UsageError where there are none, or their first rows are wrong."""
    check_first_rows(entry, rules, with_images, bad_rows)
    return {"shards": digest_value(describe_shards(open_stream(entry).shards))}
