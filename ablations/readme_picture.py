"""The README's picture: a test scene, where SAP looks, and a trained cell's answers.

python -m ablations.readme_picture runs/cells/sap+embq-... ablations/results/readme/picture.png
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from compressors.errors import UsageError

PICTURE_WIDTH, PICTURE_HEIGHT = 11, 3.6  # inches


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cell", type=Path, help="a finished cell's folder")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--scene", type=int, default=0, help="number of the test scene")
    options = parser.parse_args(arguments)
    try:
        draw_readme_picture(options.cell, options.scene, options.out)
    except (UsageError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def draw_readme_picture(cell: Path, number: int, out: Path) -> None:
    """Three panels: the picture under its patch grid, SAP's weights in its windows, questions and answers."""
    from matplotlib.figure import Figure

    from experiments.inspection.attention_figure import show_picture
    from experiments.models import saved

    root = cell.parent.parent
    data = next(
        root / stage for stage in saved.read_json_file(cell / "stages.json") if stage.startswith("data/")
    )
    file = next(data.glob("*/test.json"))
    scene = saved.read_json_file(file)[number]
    picture = saved.open_picture(file.parent / scene["image"])
    weights = compute_window_weights(cell, picture)
    figure = Figure((PICTURE_WIDTH, PICTURE_HEIGHT), dpi=130, layout="constrained")
    left, middle, right = figure.subplots(1, 3, width_ratios=(1, 1, 1.25))
    for axes, title, step, colour in (
        (left, "12 x 12 patches", 1, "white"),
        (middle, "SAP: 4 x 4 tokens, bright patches count", 3, "black"),
    ):
        show_picture(axes, picture)
        axes.set_title(title, fontsize=10)
        for line in range(0, len(weights) + 1, step):
            for draw_line in (axes.axhline, axes.axvline):
                draw_line(line * picture.width / len(weights), color=colour, linewidth=0.6, alpha=0.6)
    extent = (0, picture.width, picture.height, 0)
    middle.imshow(0 * weights, cmap="gray", alpha=0.8 * (1 - weights), extent=extent)  # dark: left out
    draw_answers(right, cell, scene["id"])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)


def compute_window_weights(cell: Path, picture):
    """SAP's weights (H, W), each window's largest as 1."""
    import torch
    from einops import rearrange

    from experiments.models import saved

    model, processor = saved.load_trained_model(cell)
    pixels = processor.pixels([picture]).to(model.device)
    with torch.inference_mode():
        weights = model.compressor.attention(model.vision_tower(pixels))[0].float().cpu()
    windows = rearrange(weights, "(h i) (w j) -> h w (i j)", i=3, j=3)
    windows = windows / windows.amax(-1, keepdim=True)
    return rearrange(windows, "h w (i j) -> (h i) (w j)", i=3).numpy()


def draw_answers(axes, cell: Path, scene: str) -> None:
    """The cell's answers about the scene, wrong ones with the truth."""
    rows = [json.loads(line) for line in (cell / "predictions.jsonl").read_text().splitlines()]
    asked = [row for row in rows if row["id"].startswith(f"{scene}#")]
    axes.set_axis_off()
    axes.set_title("sap+embq answers", fontsize=10)
    for place, row in enumerate(asked):
        question = row["question"].replace("<image>\n", "")
        y = 1 - (place + 0.5) / len(asked)
        question = question if len(question) < 58 else question[:55] + "..."
        axes.text(0, y + 0.018, question, fontsize=7.5, va="bottom")
        said = row["prediction"] + ("" if row["correct"] else f"   (truth: {row['answer']})")
        axes.text(
            0.03,
            y + 0.01,
            said,
            fontsize=8,
            va="top",
            weight="bold",
            color="#0a7d32" if row["correct"] else "#b3261e",
        )


if __name__ == "__main__":
    sys.exit(main())
