"""Where a model looks (FlashSloth, Figure 4): its compressor's weights and EmbQ's attention over a picture.

    python -m experiments.attention_maps runs/cells/CELL --image cat.png --question "what is it ?" \\
        --question "what colour is it ?"

The compressor sees the picture alone; EmbQ has read the question, so two questions about one picture show
what it adds. The redder a patch, the more it counts.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from compressors.command_line import run_guarded
from compressors.errors import UsageError
from experiments.runtime.command import CommandParser

MAX_QUESTIONS = 2  # questions side by side


def make_maps_parser() -> CommandParser:
    made = CommandParser("python -m experiments.attention_maps", description=__doc__.splitlines()[0])
    made.add_argument("run", type=Path, help="OUT/cells/CELL, OUT/finetune/KEY or a saved model's folder")
    made.add_argument("--image", type=Path, required=True, help="the picture")
    made.add_argument("--question", action="append", required=True, help="once or twice")
    made.add_argument("--out", type=Path, default=Path("attention.png"), help="PNG to write (attention.png)")
    made.add_argument("--heads", action="store_true", help="each head of EmbQ, below their mean")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return run_guarded(
        lambda: write_maps(make_maps_parser().parse_args(arguments)), "write to another place with --out"
    )


def write_maps(given: argparse.Namespace) -> int:
    """The command, with its exceptions."""
    from experiments.models import saved

    if len(given.question) > MAX_QUESTIONS:
        raise UsageError(
            f"{len(given.question)} questions; give at most {MAX_QUESTIONS}, they stand side by side"
        )
    if given.out.suffix.lower() != ".png":
        raise UsageError(f"--out {given.out}: must end in .png")
    picture = saved.open_picture(given.image)
    model, processor = saved.load_trained_model(given.run)
    from experiments.inspection.attention import record_attention
    from experiments.inspection.attention_figure import draw_attention

    looks = [record_attention(model, processor, picture, question) for question in given.question]
    figure = draw_attention(picture, looks, processor.tiling, given.heads)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out)
    sys.stdout.write(f"{given.out}\n")
    return 0


def draw_report_maps(model, processor, samples: Sequence) -> list:
    """A matplotlib figure of each sample (`experiments.data.llava.Sample`) with a picture: its first question
    and the first of another family, side by side. UsageError where the model has nothing to show."""
    from experiments.data import llava
    from experiments.inspection.attention import record_attention
    from experiments.inspection.attention_figure import draw_attention
    from llm_adapters.conversation import IMAGE

    figures = []
    for sample in samples:
        if sample.images:
            picture = llava.open_image(sample)
            asked = [
                sample.turns[i].question.replace(IMAGE, "").strip() for i in pick_unlike_questions(sample)
            ]
            looks = [record_attention(model, processor, picture, question) for question in asked]
            figures.append(draw_attention(picture, looks, processor.tiling))
    return figures


def pick_unlike_questions(sample) -> list[int]:
    """The first question's number and that of the first in another family, without families the second."""
    families = sample.families or range(len(sample.turns))
    other = next((i for i, family in enumerate(families) if family != families[0]), None)
    return [0] if other is None else [0, other]


if __name__ == "__main__":
    sys.exit(main())
