"""Writes the gallery of compressors: of each a picture of where its tokens come from, and a page of them all.

    python -m experiments.gallery to=compressors/gallery       README.md and a PNG for each
    python -m experiments.gallery sap tome                     these two only, in the folder gallery; pictures
                                                               that lie there stay on its page

Every compressor of the registry, outside packages' too, at the preset tiny: 12x12 patches of a PictureVQA
scene as the tiny tower sees it, 16 tokens. Learned ones have random weights.
One that does not work is left out, and a line says why, unless it is asked for by name.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError, join_lines
from compressors.registry import naming_part
from compressors.setting_fields import setting
from experiments.config import signatures

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from compressors.listing import CompressorFacts

SCENE_SPLIT = "test"
SCENE_NUMBER = 6
PNG_COLOURS = 256  # a byte a pixel: the gallery in the repository stays below a megabyte
QUESTION_TOKENS = 8  # of the question for a compressor that reads one
GALLERY_HEAD = """\
# Where the tokens come from

Every compressor of the registry over one scene of PictureVQA, at the preset `tiny`: 12x12 patches in, 16
tokens out. Written by `python -m experiments.gallery to=compressors/gallery`.

- *all tokens*: each token has a colour. A patch has the colours of the tokens that it goes into: pure where
  it goes into one, grey where all read it alike. The less it counts, the paler it is.
- *token n*: the patches of a single token, the more opaque the more they count for it.
- *its own weights*: what the compressor's `attention` says of all its tokens together.

How much a patch counts for a token is the size of the token's gradient with respect to that patch; where
tokens are weighted sums of patches, these are the weights. **Learned compressors have random weights here:
their pictures show what a token can reach before training, not what it will look at.** Nor do they show why a
patch was chosen, only what became of it, or what the patch itself saw of the picture inside the tower.

![the picture](picture.png)
"""


@dataclass(frozen=True)
class GalleryOptions:
    """Where the gallery goes."""

    to: Path = setting(Path("gallery"), "folder to write to")


COMMAND = Command(
    usage="python -m experiments.gallery [NAME ...] [to=DIR]",
    description=f"{__doc__}\nNAME: these compressors only.",
    options=GalleryOptions,
    words=(0, None),
    elsewhere="write to another place with to=DIR",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(write_gallery, arguments)


def write_gallery(line: CommandLine) -> int:
    """Write a picture of each compressor, and the page."""
    folder: Path = line.options.to
    registry = signatures.compressors()
    names = [registry.require(name) for name in line.words] or registry.names()
    # torch: a typo in a name does not wait for it
    from compressors.listing import collect_facts
    from experiments.models.build import silence_libraries

    silence_libraries()
    folder.mkdir(parents=True, exist_ok=True)
    picture = draw_gallery_scene()
    reduce_colours(picture).save(folder / "picture.png", optimize=True)
    faults: dict[str, UsageError] = {}
    for name in names:
        path = folder / f"{name}.png"
        try:
            with naming_part(registry.kind, name, registry.get(name)):
                write_token_sheet(name, picture, path)
        except UsageError as error:
            if line.words:
                raise
            faults[name] = error
        else:
            sys.stdout.write(f"{path}\n")
    page = [GALLERY_HEAD]
    for name in registry.names():
        is_drawn = (folder / f"{name}.png").exists()  # now or earlier
        if not is_drawn or name in faults:
            continue
        try:
            page.append(format_gallery_section(collect_facts(name)))
        except UsageError as error:
            faults[name] = error
    for fault in faults.values():
        sys.stdout.write(f"left out: {join_lines(fault)}\n")
    (folder / "README.md").write_text("\n".join(page), encoding="utf-8")
    return 0


def draw_gallery_scene() -> "Image.Image":
    """One picture of PictureVQA, as every data set of seed 0 has it."""
    from experiments.picture_vqa import dataset
    from experiments.picture_vqa.drawing import draw_scene

    return draw_scene(dataset.make_scene(SCENE_SPLIT, SCENE_NUMBER)[0])


def write_token_sheet(name: str, picture: "Image.Image", path: Path) -> None:
    """Write the picture of one compressor, with random weights of seed 0."""
    # the command's --help does without these
    import torch
    from PIL import Image

    import compressors
    from compressors.listing import TOWER, collect_facts
    from experiments.config.cells import make_cells
    from experiments.inspection.origins_figure import draw_origins
    from experiments.inspection.token_origins import estimate_origins
    from experiments.models.build import build_model

    asks_tower = collect_facts(name).text == TOWER
    cell = make_cells({"compressor": ["identity" if asks_tower else name]})[0]
    model, processor = build_model(cell.config)
    if asks_tower:
        dims = {"dim": model.vision_tower.dim, "llm_dim": model.config.text_config.hidden_size}
        model.compressor = compressors.create(name, **dims)
    part = model.compressor.eval()
    text: tuple[torch.Tensor, ...] = ()
    with torch.no_grad():
        pixels = processor.pixels([picture])
        if asks_tower:
            features, text = make_up_question(model.vision_tower(pixels))
        else:
            features = model.get_image_features(pixels.unsqueeze(0))[0]
        features = model.add_projected(features)
    if part.needs_text:  # a question of random embeddings, (1, T, D)
        text_width = model.config.text_config.hidden_size
        text = (torch.randn(1, QUESTION_TOKENS, text_width),)
    with torch.no_grad():
        weights = part.attention(features, *text)
    if part.image_rate > 1:  # what the tower sees
        width, height = picture.size
        small = (width // part.image_rate, height // part.image_rate)
        picture = picture.resize(small, Image.Resampling.BICUBIC)
        picture = picture.resize((width, height), Image.Resampling.NEAREST)
    origins = estimate_origins(part, features, *text)
    if weights is not None:
        weights = weights[0]  # (H, W)
    draw_origins(picture, origins, weights).savefig(path)
    with Image.open(path) as drawn:
        reduce_colours(drawn).save(path, optimize=True)


def make_up_question(patches: "torch.Tensor") -> tuple["torch.Tensor", tuple["torch.Tensor"]]:
    """For a tower without a text encoder: patches (1, H, W, C) with themselves as the space of the text, and
    a question about what is in the middle of the picture, (1, 1, C)."""
    from torch import cat
    from torch.nn.functional import normalize

    height, width = patches.shape[1:3]
    joint = normalize(patches - patches.mean((1, 2), keepdim=True), dim=-1)
    middle = joint[:, height // 2, width // 2].unsqueeze(1)
    return cat([patches, joint], -1), (-middle,)  # what it is about is least like a text


def reduce_colours(picture: "Image.Image") -> "Image.Image":
    """A picture of few colours."""
    return picture.convert("RGB").quantize(PNG_COLOURS)


def format_gallery_section(facts: "CompressorFacts") -> str:
    """A compressor's part of the page."""
    from compressors.listing import TOWER

    words = [facts.title, facts.summary]
    if facts.learned != "-":
        words.append("*Random weights.*")
    if facts.text == TOWER:
        words.append("*The question is made up: what is in the middle of the picture.*")
    return f"## {facts.name}\n\n{' '.join(words)}\n\n![{facts.name}]({facts.name}.png)\n"


if __name__ == "__main__":
    sys.exit(main())
