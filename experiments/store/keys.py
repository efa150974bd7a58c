"""What a stage's key knows of the outside: the content of data files, images and weights. No torch."""

import hashlib
import json
import os
from functools import cache
from pathlib import Path

from experiments.config.sources import CACHE_SCHEME, resolve_source
from experiments.data import llava

CHUNK_BYTES = 1 << 20


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


@cache
def digest_source(name: str) -> object:
    """Weights: asset: and cache: by content, folders by names, sizes and times, anything else by its name."""
    folder = Path(resolve_source(name))
    if not folder.is_dir():
        return name
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    if name.startswith(("asset:", CACHE_SCHEME)):
        return {str(p.relative_to(folder)): digest_file(p) for p in files}
    return {str(p.relative_to(folder)): [(s := p.stat()).st_size, s.st_mtime_ns] for p in files}


@cache
def digest_data_file(path: str, images: str | None, with_images: bool) -> dict[str, str]:
    """A LLaVA file by its content, its images by name, size and time. Validates all of it."""
    image_folder = Path(images) if images else None
    samples = llava.load_samples(Path(path), image_folder, check_images=with_images)
    found = {"json": digest_file(Path(path))}
    if with_images:
        root = llava.find_image_folder(Path(path), image_folder)
        listing = hashlib.sha256()
        for image in sorted({str(i) for s in samples for i in s.images}):
            stat = os.stat(image)
            listing.update(f"{os.path.relpath(image, root)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        found["images"] = listing.hexdigest()
    return found
