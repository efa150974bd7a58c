"""Reads the patch features of a frozen tower, which `experiments/stages/features.py` has written.

features.npy   (crops of all images, H, W, C) float16
images.json    image paths, in order, from the output directory if below it
crops.json     crops of each image, where images differ in it
"""

import json
import os
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FEATURES_FILE = "features.npy"
IMAGES_FILE = "images.json"
CROPS_FILE = "crops.json"


class FeatureCache:
    """Features that a finished stage wrote; `cache[path]` is (crops, H, W, C) float16, read when asked."""

    def __init__(self, folder: Path):
        paths = json.loads((folder / IMAGES_FILE).read_text())
        self.features = np.load(folder / FEATURES_FILE, mmap_mode="r")  # (crops, H, W, C)
        if not (folder / CROPS_FILE).exists():
            # all images have as many; `max` for data without any image
            crops = [len(self.features) // max(1, len(paths))] * len(paths)
        else:
            crops = json.loads((folder / CROPS_FILE).read_text())
        root = find_output_root(folder)
        self.places: dict[str, slice] = {}  # absolute image path -> its rows of `features`
        for path, count, end in zip(paths, crops, accumulate(crops)):
            self.places[os.path.join(root, path)] = slice(end - count, end)

    def crops(self, path: "os.PathLike[str]") -> int:
        """How many crops an image has."""
        place = self.places[os.path.abspath(path)]
        return place.stop - place.start

    def __getitem__(self, path: "os.PathLike[str]") -> Tensor:
        place = self.places[os.path.abspath(path)]
        # a copy: torch must not write through to the file
        return torch.from_numpy(np.array(self.features[place]))


def find_output_root(folder: Path) -> str:
    """OUT of OUT/features/<key>: images below it are named from there, so that OUT can be moved."""
    return os.path.dirname(os.path.dirname(os.path.abspath(folder)))
