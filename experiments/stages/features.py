"""Patch features of a frozen tower, computed once for every image of a set of files and kept on disk.
`experiments/data/feature_cache.py` reads them and says what the files hold.
"""

import json
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

import compressors
from compressors.reading import read_text_file
from connectors.tiling import Tiling
from connectors.towers.base import VisionTower
from connectors.towers.build import load_tower
from experiments.config.devices import pick_device
from experiments.config.schema import Config
from experiments.config.sources import resolve_source
from experiments.data import llava
from experiments.data.ahead import count_workers, read_ahead
from experiments.data.feature_cache import CROPS_FILE, FEATURES_FILE, IMAGES_FILE, find_output_root
from experiments.data.records import ImageFile
from experiments.data.roles import load_role_samples
from experiments.models.build import silence_libraries
from experiments.models.tower_text import load_cell_text_encoder
from experiments.runtime.files import allocate_file, write_atomic
from experiments.runtime.progress import Reporter
from experiments.store.folder import PROGRESS_FILE
from experiments.store.store import NotFinite
from llm_adapters.images import image_pixels, image_processor
from llm_adapters.visual_prompt import shrink_pixels

IMAGES_PER_BATCH = 32


class ShownImage(NamedTuple):
    """An image by the first sample that shows it."""

    sample: llava.Sample
    number: int  # of the sample's images


class ImageEncoder(NamedTuple):
    """What makes features of images.

    rate    by which images are shrunk before the tower
    levels  hidden states of the tower that are kept beside its output
    cues    what else is kept (`compressors/cues.py`)
    """

    tower: VisionTower
    device: torch.device
    rate: int
    levels: tuple[int, ...]
    cues: tuple[str, ...]


def name_image(path: ImageFile, root: str) -> str:
    """How images.json names an image: from `root` if below it, so that the output directory can be moved."""
    place = os.path.abspath(path)
    if place.startswith(root + os.sep):
        return os.path.relpath(place, root)
    return place


def collect_images(
    config: Config, inputs: dict[str, Path], roles: Sequence[str]
) -> dict[ImageFile, ShownImage]:
    """Every image of the roles' files once, in order of appearance."""
    images: dict[ImageFile, ShownImage] = {}
    for role in roles:
        for sample in load_role_samples(config, inputs, role):
            for number, path in enumerate(sample.images):
                images.setdefault(path, ShownImage(sample, number))
    return images


def count_crops(images: Sequence[ShownImage], tiling: Tiling) -> list[int]:
    """Crops of each image; no more of it is read than its size."""
    crops = []
    for image in images:
        width, height = llava.read_image_size(image.sample, image.number)
        crops.append(tiling.num_crops(width, height))
    return crops


def prepare_encoder(config: Config, name: str) -> ImageEncoder:
    """The tower of a cell on its device, with what the compressor called `name` asks of it."""
    device = pick_device(config.trainer)
    tower = load_tower(resolve_source(config.tower.source), config.tower.select_layer).freeze().to(device)
    compressor = make_bare_compressor(config, name, tower.dim)
    if compressor.needs_tower_text:
        tower.add_text_encoder(load_cell_text_encoder(config, name).to(device))
    tower.check_needs(compressor.needs_levels, compressor.needs_cues)
    return ImageEncoder(tower, device, compressor.image_rate, compressor.needs_levels, compressor.needs_cues)


def write_image_names(out: Path, paths: Iterable[ImageFile]) -> None:
    """Write which images the rows belong to. A killed run that saw them in another order is forgotten: its
    rows are other images'."""
    root = find_output_root(out)
    text = json.dumps([name_image(path, root) for path in paths])
    file = out / IMAGES_FILE
    if file.is_file() and file.read_text() != text:
        (out / PROGRESS_FILE).unlink(missing_ok=True)
    write_atomic(file, text)


def count_all_crops(images: Sequence[ShownImage], tiling: Tiling, out: Path) -> list[int]:
    """Crops of each image; written beside the features where images differ."""
    if tiling.fixed:
        return [tiling.most_crops] * len(images)
    with llava.report_all_broken_images(image.sample for image in images):
        crops = count_crops(images, tiling)
    write_atomic(out / CROPS_FILE, json.dumps(crops))
    return crops


def run(config: Config, inputs: dict[str, Path], out: Path, report: Reporter, roles: Sequence[str]) -> None:
    """The stage, for data roles that see images alike. A killed run goes on after the last whole batch."""
    silence_libraries()
    encoder = prepare_encoder(config, config.find_compressor(roles[0]))
    tower = encoder.tower
    processor: Any = image_processor(tower, config.image.size)
    side = processor.size["height"]
    tiling = Tiling(config.tiles(roles[0]), side, config.image.layout)

    image_of_path = collect_images(config, inputs, roles)
    images = list(image_of_path.values())
    write_image_names(out, image_of_path)
    crops = count_all_crops(images, tiling, out)
    starts = [0, *accumulate(crops)]  # an image's first row of the array

    grid = tower.grid(side // encoder.rate, side // encoder.rate)
    channels = tower.count_channels(encoder.levels, encoder.cues)
    array, done = _open_features(out, (starts[-1], *grid, channels))
    report.announce_steps(len(images), done=done)
    batches = []
    for first in range(done, len(images), IMAGES_PER_BATCH):
        batches.append(images[first : first + IMAGES_PER_BATCH])
    read = partial(read_pixels, processor, tiling)
    pixels_ahead = read_ahead(read, batches, count_workers(config.data.workers))
    first = done
    for batch in batches:
        with llava.report_all_broken_images(image.sample for image in images[first:]):
            pixels = next(pixels_ahead).to(encoder.device)
        features = encode_crops(tower, shrink_pixels(pixels, encoder.rate), encoder.levels, encoder.cues)
        if not features.isfinite().all():
            raise NotFinite(
                f"images {first} to {first + len(batch)}, from sample {batch[0].sample.id} on: features of "
                f"tower.source={config.tower.source} are not finite as float16; take tower.cache=false"
            )
        end = first + len(batch)
        array[starts[first] : starts[end]] = features.numpy()
        # on disk before the progress says so
        array.flush()
        write_atomic(out / PROGRESS_FILE, str(end))
        report.advance_steps(len(batch))
        first = end
    (out / PROGRESS_FILE).unlink(missing_ok=True)


def read_pixels(processor: Any, tiling: Tiling, batch: Sequence[ShownImage]) -> Tensor:
    """Images -> their crops (N, 3, h, w), image by image."""
    pictures = [llava.open_image(image.sample, image.number) for image in batch]
    return image_pixels(processor, pictures, tiling)


@torch.inference_mode()
def encode_crops(
    tower: VisionTower, pixels: Tensor, levels: Sequence[int] = (), cues: Sequence[str] = ()
) -> Tensor:
    """(B, 3, h, w) -> (B, H, W, (1 + L) C + cues) float16 on the CPU."""
    return tower.extract_features(pixels, levels, cues).to("cpu", torch.float16)


def make_bare_compressor(config: Config, name: str, dim: int) -> compressors.Compressor:
    """A compressor of the cell without weights, to be asked what it needs."""
    with torch.device("meta"):
        return compressors.create(name, dim=dim, llm_dim=dim, **config.knobs(name))


def _open_features(out: Path, shape: tuple[int, ...]) -> tuple[np.memmap, int]:
    """The array on disk and how many images of it a run before this one has finished."""
    path = out / FEATURES_FILE
    progress = out / PROGRESS_FILE
    for file in (path, progress):
        if file.exists() and not file.is_file():  # a pipe would be waited for
            file.unlink()
    array = None
    done = 0
    if path.exists() and progress.exists():
        with suppress(ValueError):  # of a file that was cut or changed: all is computed again
            array = open_memmap(path, mode="r+")
            done = int(read_text_file(progress) or 0)
    is_fitting = array is not None and array.shape == shape and array.dtype == np.float16
    if array is None or not is_fitting or not 0 <= done <= shape[0]:
        array = open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        done = 0
    allocate_file(path)
    return array, done
