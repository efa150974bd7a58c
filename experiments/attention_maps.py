"""Where a model looks (FlashSloth, Figure 4): its compressor's weights and EmbQ's attention over a picture.

    python -m experiments.attention_maps runs/cells/CELL cat.png "what is it ?" "what colour is it ?"

The compressor sees the picture alone; EmbQ has read the question, so two questions about one picture show
what it adds. The redder a patch, the more it counts.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.setting_fields import setting
from experiments.config.schema import Config

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from experiments.data.llava import Sample
    from llm_adapters.modeling import FlashSlothForConditionalGeneration
    from llm_adapters.processing import FlashSlothProcessor

MAX_QUESTIONS = 2  # they stand side by side


@dataclass(frozen=True)
class MapsOptions:
    """How and where the maps are drawn."""

    to: Path = setting(Path("attention.png"), "PNG to write")
    out: Path = setting(Path(Config().out), "output directory of the sweep")
    heads: bool = setting(False, "each head of EmbQ, below their mean")


COMMAND = Command(
    usage='python -m experiments.attention_maps MODEL IMAGE "QUESTION" ["QUESTION"] [KEY=VALUE ...]',
    description=f"{__doc__}\nMODEL: CELL below out=, OUT/finetune/KEY or a saved model's folder.",
    options=MapsOptions,
    words=(3, 2 + MAX_QUESTIONS),
    elsewhere="write to another place with to=FILE.png",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(write_maps, arguments)


def write_maps(line: CommandLine) -> int:
    """Draw the maps of one or two questions about a picture."""
    # torch, transformers and matplotlib are imported after what can be wrong with the command line
    from experiments.models import saved

    name, image, *questions = line.words
    options: MapsOptions = line.options
    if options.to.suffix.lower() != ".png":
        raise UsageError(f"to={options.to}: must end in .png")
    picture = saved.open_picture(Path(image))
    folder = saved.find_named_model(name, None, options.out, name)
    model, processor = saved.load_trained_model(folder)
    from experiments.inspection.attention import record_attention
    from experiments.inspection.attention_figure import draw_attention

    records = [record_attention(model, processor, picture, question) for question in questions]
    figure = draw_attention(picture, records, processor.tiling, options.heads)
    options.to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.to)
    sys.stdout.write(f"{options.to}\n")
    return 0


def draw_report_maps(
    model: "FlashSlothForConditionalGeneration", processor: "FlashSlothProcessor", samples: "Sequence[Sample]"
) -> "list[Figure]":
    """A figure of each sample with a picture: its first question and the first of another family, side by
    side. UsageError where the model has nothing to show."""
    from experiments.data import llava
    from experiments.inspection.attention import record_attention
    from experiments.inspection.attention_figure import draw_attention
    from llm_adapters.conversation import IMAGE

    figures = []
    for sample in samples:
        if not sample.images:
            continue
        picture = llava.open_image(sample)
        records = []
        for number in pick_unlike_questions(sample):
            # the marker of the picture's place is put back by the conversation
            question = sample.turns[number].question.replace(IMAGE, "").strip()
            records.append(record_attention(model, processor, picture, question))
        figures.append(draw_attention(picture, records, processor.tiling))
    return figures


def pick_unlike_questions(sample: "Sample") -> list[int]:
    """The first question's number and that of the first in another family, without families the second."""
    families: Sequence[object] = sample.families or range(len(sample.turns))
    for number, family in enumerate(families):
        if family != families[0]:
            return [0, number]
    return [0]


if __name__ == "__main__":
    sys.exit(main())
