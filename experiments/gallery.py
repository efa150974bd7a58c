"""Writes the gallery of compressors: of each a picture of where its tokens come from, and a page of them all.

    python -m experiments.gallery --to compressors/gallery     README.md and a PNG for each
    python -m experiments.gallery sap tome                     these two only, in the folder gallery

Every compressor of the registry, outside packages' too, at the preset tiny: 12x12 patches of a PictureVQA
scene as the tiny tower sees it, 16 tokens. Learned ones have random weights.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compressors.command_line import run_guarded
from experiments.config import signatures
from experiments.runtime.command import CommandParser

SCENE_SPLIT, SCENE_NUMBER = "test", 6
PNG_COLOURS = 256  # of a PNG
QUESTION_TOKENS = 8  # tokens, for a compressor that reads one
GALLERY_HEAD = """\
# Where the tokens come from

Every compressor of the registry over one scene of PictureVQA, at the preset `tiny`: 12x12 patches in, 16
tokens out. Written by `python -m experiments.gallery --to compressors/gallery`.

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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    made = CommandParser("python -m experiments.gallery", description=__doc__.splitlines()[0])
    made.add_argument("names", nargs="*", metavar="NAME", help="compressors (all)")
    made.add_argument("--to", type=Path, default=Path("gallery"), help="folder to write to (gallery)")
    return run_guarded(lambda: write_gallery(made.parse_args(arguments)), "write to another place with --to")


def write_gallery(given: argparse.Namespace) -> int:
    """The command, with its exceptions."""
    known = signatures.compressors()
    names = [known.require(name) for name in given.names] or known.names()
    from compressors.listing import collect_facts  # torch: not for a typo
    from experiments.models.build import silence_libraries

    silence_libraries()
    given.to.mkdir(parents=True, exist_ok=True)
    picture = draw_gallery_scene()
    reduce_colours(picture).save(given.to / "picture.png", optimize=True)
    page = [GALLERY_HEAD]
    for name in names:
        path = given.to / f"{name}.png"
        write_token_sheet(name, picture, path)
        page.append(format_gallery_section(collect_facts(name)))
        sys.stdout.write(f"{path}\n")
    (given.to / "README.md").write_text("\n".join(page), encoding="utf-8")
    return 0


def draw_gallery_scene():
    """One picture of PictureVQA, as every data set of seed 0 has it."""
    from experiments.picture_vqa import dataset
    from experiments.picture_vqa.drawing import draw_scene

    return draw_scene(dataset.make_scene(SCENE_SPLIT, SCENE_NUMBER)[0])


def write_token_sheet(name: str, picture, path: Path) -> None:
    """The picture of one compressor, random weights of seed 0."""
    import torch
    from PIL import Image

    from experiments.config.cells import make_cells
    from experiments.inspection.origins_figure import draw_origins
    from experiments.inspection.token_origins import estimate_origins
    from experiments.models.build import build_model

    model, processor = build_model(make_cells({"compressor": [name]})[0].config)
    part = model.compressor.eval()
    with torch.no_grad():
        features = model.get_image_features(processor.pixels([picture]).unsqueeze(0))[0]
    text = (
        (torch.randn(1, QUESTION_TOKENS, model.get_input_embeddings().embedding_dim),)
        if part.needs_text
        else ()
    )
    with torch.no_grad():
        weights = part.attention(features, *text)
    if part.image_rate > 1:  # what the tower sees
        seen = picture.resize([side // part.image_rate for side in picture.size], Image.Resampling.BICUBIC)
        picture = seen.resize(picture.size, Image.Resampling.NEAREST)
    figure = draw_origins(
        picture, estimate_origins(part, features, *text), None if weights is None else weights[0]
    )
    figure.savefig(path)
    with Image.open(path) as drawn:
        reduce_colours(drawn).save(path, optimize=True)


def reduce_colours(picture):
    """A picture of few colours."""
    return picture.convert("RGB").quantize(PNG_COLOURS)


def format_gallery_section(found) -> str:
    """A compressor's part of the page, from its `Facts`."""
    words = [found.title, found.summary]
    if found.learned != "-":
        words.append("*Random weights.*")
    return f"## {found.name}\n\n{' '.join(words)}\n\n![{found.name}]({found.name}.png)\n"


if __name__ == "__main__":
    sys.exit(main())
