"""The README's picture: a test scene, where SAP looks, and a trained cell's answers.

python -m ablations.readme_picture runs/cells/sap+embq-... to=ablations/results/readme/picture.png
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.reading import read_json_file
from compressors.setting_fields import setting
from experiments.store.results import PREDICTIONS_FILE
from llm_adapters.saved import STAGES_FILE

# matplotlib and torch are imported where they are needed: --help and a misspelt line need not wait for them
if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from PIL.Image import Image

PICTURE_WIDTH, PICTURE_HEIGHT = 11, 3.6  # inches
WINDOW = 3  # patches along a side of a window of SAP, as the preset `tiny` has it
LONGEST_QUESTION = 58  # letters that fit into the panel
RIGHT_COLOUR, WRONG_COLOUR = "#0a7d32", "#b3261e"


@dataclass(frozen=True)
class PictureOptions:
    """Settings of the command."""

    to: Path = setting(None, "PNG file to write", required=True)
    scene: int = setting(0, "number of the test scene", low=0)


COMMAND = Command(
    usage="python -m ablations.readme_picture CELL to=PICTURE.png [scene=0]",
    description="Draws the README's picture: a test scene, where SAP looks, and the answers of a finished "
    "cell, given by its folder.",
    options=PictureOptions,
    words=(1, 1),
    elsewhere="write to another place with to=PNG",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(write_readme_picture, arguments)


def write_readme_picture(line: CommandLine) -> int:
    """Draw and write the picture that a command line asks for."""
    options: PictureOptions = line.options
    draw_readme_picture(Path(line.words[0]), options.scene, options.to)
    return 0


def draw_readme_picture(cell: Path, scene_number: int, path: Path) -> None:
    """Three panels: the picture under its patch grid, SAP's weights in its windows, questions and answers."""
    from matplotlib.figure import Figure

    from experiments.inspection.attention_figure import show_picture
    from experiments.models import saved

    test_file = find_test_file(cell)
    scenes = read_json_file(test_file)
    if scene_number >= len(scenes):
        raise UsageError(f"scene={scene_number}: {test_file} has {len(scenes)}, counted from 0")
    scene = scenes[scene_number]
    picture = saved.open_picture(test_file.parent / scene["image"])
    weights = compute_window_weights(cell, picture)  # (H, W)

    figure = Figure((PICTURE_WIDTH, PICTURE_HEIGHT), dpi=130, layout="constrained")
    grid_panel, weights_panel, answers_panel = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    show_picture(grid_panel, picture)
    grid_panel.set_title("12 x 12 patches", fontsize=10)
    draw_grid(grid_panel, picture.width, len(weights), 1, "white")
    show_picture(weights_panel, picture)
    weights_panel.set_title("SAP: 4 x 4 tokens, bright patches count", fontsize=10)
    draw_grid(weights_panel, picture.width, len(weights), WINDOW, "black")
    extent = (0, picture.width, picture.height, 0)
    # black, the less a patch weighs the less can be seen through it
    weights_panel.imshow(0 * weights, cmap="gray", alpha=0.8 * (1 - weights), extent=extent)
    draw_answers(answers_panel, cell, scene["id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def find_test_file(cell: Path) -> Path:
    """The test questions of the embedded data that a cell was trained on. UsageError where there are none."""
    root = cell.parent.parent
    for stage in read_json_file(cell / STAGES_FILE):
        if stage.startswith("data/"):
            for test_file in (root / stage).glob("*/test.json"):
                return test_file
    raise UsageError(f"{cell}: its embedded test data are not below {root}")


def draw_grid(axes: "Axes", width: int, patches: int, step: int, colour: str) -> None:
    """Lines over a picture after every `step` patches, both ways. `width`: of the picture in pixels."""
    for line in range(0, patches + 1, step):
        for draw_line in (axes.axhline, axes.axvline):
            draw_line(line * width / patches, color=colour, linewidth=0.6, alpha=0.6)


def compute_window_weights(cell: Path, picture: "Image") -> "NDArray[np.float32]":
    """SAP's weights (H, W), each window's largest as 1."""
    import torch
    from einops import rearrange

    from experiments.models import saved

    model, processor = saved.load_trained_model(cell)
    pixels = processor.pixels([picture]).to(model.device)
    with torch.inference_mode():
        weights = model.compressor.attention(model.vision_tower(pixels))[0].float().cpu()  # (H, W)
    windows = rearrange(weights, "(h i) (w j) -> h w (i j)", i=WINDOW, j=WINDOW)
    windows = windows / windows.amax(-1, keepdim=True)
    return rearrange(windows, "h w (i j) -> (h i) (w j)", i=WINDOW).numpy()


def draw_answers(axes: "Axes", cell: Path, scene_id: str) -> None:
    """The cell's answers about the scene, wrong ones with the truth."""
    answers = []
    predictions = (cell / PREDICTIONS_FILE).read_text(encoding="utf-8")
    for line in predictions.splitlines():
        answer = json.loads(line)
        if answer["id"].startswith(f"{scene_id}#"):
            answers.append(answer)
    axes.set_axis_off()
    axes.set_title("sap+embq answers", fontsize=10)
    for place, answer in enumerate(answers):
        question = answer["question"].replace("<image>\n", "")
        if len(question) >= LONGEST_QUESTION:
            question = question[: LONGEST_QUESTION - 3] + "..."
        words = answer["prediction"]
        colour = RIGHT_COLOUR
        if not answer["correct"]:
            words += f"   (truth: {answer['answer']})"
            colour = WRONG_COLOUR
        y = 1 - (place + 0.5) / len(answers)  # of the panel's height: the question above, the answer below
        axes.text(0, y + 0.018, question, fontsize=7.5, va="bottom")
        axes.text(
            0.03,
            y + 0.01,
            words,
            fontsize=8,
            va="top",
            weight="bold",
            color=colour,
        )


if __name__ == "__main__":
    sys.exit(main())
