"""Patch features of a frozen tower, computed once for every image of a set of files and kept on disk.
`experiments/data/feature_cache.py` reads them and says what the files hold.
"""

import json
import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

import compressors
from connectors.tiling import Tiling
from connectors.towers.base import VisionTower
from connectors.towers.build import load_tower
from experiments.config.schema import Config
from experiments.config.sources import resolve_source
from experiments.data import llava
from experiments.data import roles as samples
from experiments.data.feature_cache import CROPS_FILE, FEATURES_FILE, IMAGES_FILE, find_output_root
from experiments.models.build import pick_device, silence_libraries
from experiments.runtime.progress import Reporter
from llm_adapters.images import image_pixels, image_processor
from llm_adapters.visual_prompt import shrink_pixels

IMAGES_PER_BATCH = 32
PROGRESS_FILE = "finished"


def name_image(path: Path, root: str) -> str:
    """How images.json names an image."""
    place = os.path.abspath(path)
    if place.startswith(root + os.sep):
        return os.path.relpath(place, root)
    return place


def collect_images(
    config: Config, inputs: dict[str, Path], roles: Sequence[str]
) -> dict[Path, tuple[llava.Sample, int]]:
    """Every image of the roles' files once, in order of appearance, with a sample that shows it."""
    shown_by: dict[Path, tuple[llava.Sample, int]] = {}
    for role in roles:
        for sample in samples.load_role_samples(config, inputs, role):
            for number, image in enumerate(sample.images):
                shown_by.setdefault(image, (sample, number))
    return shown_by


def run(config: Config, inputs: dict[str, Path], out: Path, report: Reporter, roles: Sequence[str]) -> None:
    """The stage, for data roles that see images alike. A killed run goes on after the last whole batch."""
    silence_libraries()
    device = pick_device(config.trainer.accelerator)
    tower = load_tower(resolve_source(config.tower.source), config.tower.select_layer).freeze().to(device)
    compressor = make_bare_compressor(config, tower.dim)
    processor: Any = image_processor(tower, config.image.size)
    rate = compressor.image_rate
    levels = compressor.needs_levels
    size = processor.size["height"]
    tiling = Tiling(config.tiles(roles[0]), size, config.image.layout)
    places = list(collect_images(config, inputs, roles).items())
    root = find_output_root(out)
    (out / IMAGES_FILE).write_text(json.dumps([name_image(path, root) for path, _ in places]))
    crops = [tiling.most_crops] * len(places)
    if not tiling.fixed:
        crops = [tiling.num_crops(*llava.read_image_size(sample, i)) for _, (sample, i) in places]
        (out / CROPS_FILE).write_text(json.dumps(crops))
    starts = [0, *accumulate(crops)]
    channels = tower.dim * (1 + len(levels))
    array, done = _open_features(out, (starts[-1], *tower.grid(size // rate, size // rate), channels))
    report.announce_steps(len(places), done=done)
    for start in range(done, len(places), IMAGES_PER_BATCH):
        batch = [llava.open_image(sample, i) for _, (sample, i) in places[start : start + IMAGES_PER_BATCH]]
        features = encode_crops(
            tower, shrink_pixels(image_pixels(processor, batch, tiling).to(device), rate), levels
        )
        array[starts[start] : starts[start + len(batch)]] = features.numpy()
        array.flush()
        (out / PROGRESS_FILE).write_text(str(start + len(batch)))
        report.advance_steps(len(batch))
    (out / PROGRESS_FILE).unlink(missing_ok=True)


@torch.inference_mode()
def encode_crops(tower: VisionTower, pixels: Tensor, levels: Sequence[int] = ()) -> Tensor:
    """(B, 3, h, w) -> (B, H, W, (1 + L) C) float16 on the CPU."""
    return tower.with_levels(pixels, levels).to("cpu", torch.float16)


def make_bare_compressor(config: Config, dim: int) -> compressors.Compressor:
    """The cell's compressor without weights, to be asked what it needs."""
    name = config.compressor_name
    with torch.device("meta"):
        return compressors.create(name, dim=dim, llm_dim=dim, **config.knobs(name))


def _open_features(out: Path, shape: tuple[int, ...]) -> tuple[np.memmap, int]:
    """The array on disk and how many images of it a run before this one has finished."""
    path, progress = out / FEATURES_FILE, out / PROGRESS_FILE
    if path.exists() and progress.exists():
        array = open_memmap(path, mode="r+")
        if array.shape == shape:
            return array, int(progress.read_text() or 0)
    return open_memmap(path, mode="w+", dtype=np.float16, shape=shape), 0
