"""Attention maps of a report (Figure 4 of the paper): where a trained model looks in a few test scenes.

The model is that of the first finished cell with a query module that is still there or was drawn before; the
scenes are the first of its test data with unlike questions: no hand picks them.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablations import outcomes
from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.store.plan import Stage
from experiments.store.store import Store

MAPPED_SCENES, MAP_COLOURS = 3, 128


def add_maps(
    report: outcomes.Report,
    finished: Sequence[tuple[Cell, Stage]],
    store: Store,
    folder: Path,
    known: outcomes.Report | None = None,
) -> None:
    """Draw the maps of a report, or take those of the same model that the one before in `folder`, or another
    `known` one, has. A model or pictures that are gone leave a note in their place."""
    drawn = {
        each.made.get("maps", {}).get("stage"): each
        for each in (known, find_written_report(folder))
        if each is not None and each.maps
    }
    able = [(cell, stage) for cell, stage in finished if cell.config.query_module]
    there = (
        pair
        for pair in able
        if pair[1].inputs["finetune"].key in drawn or store.locate_result(pair[1].inputs["finetune"]).is_dir()
    )
    chosen = next(there, able[0] if able else None)
    if chosen is None:
        return
    cell, stage = chosen
    key = stage.inputs["finetune"].key
    made: dict[str, Any] = {"of": f"{cell.label}, seed {cell.config.seed}", "stage": key}
    if key in drawn:
        report.maps, made = drawn[key].maps, drawn[key].made["maps"]
    else:
        try:
            report.maps, made["scenes"] = draw_maps(stage, store)
        except UsageError as error:
            made["missing"] = str(error)
    report.made["maps"] = made


def find_written_report(folder: Path) -> outcomes.Report | None:
    """The report that was written to `folder`, if there is one."""
    try:
        return outcomes.load_report(folder)
    except UsageError:
        return None


def draw_maps(stage: Stage, store: Store) -> tuple[list[bytes], list[str]]:
    """PNG files and the scenes' ids. Imports torch."""
    from experiments import attention_maps
    from experiments.data import roles
    from experiments.models import saved

    inputs: Mapping[str, Path] = {kind: store.locate_result(each) for kind, each in stage.inputs.items()}
    model, processor = saved.load_trained_model(inputs["finetune"])
    shown = [
        sample
        for sample in roles.load_role_samples(stage.config, inputs, "test", check_images=False)
        if sample.images
    ]
    scenes = ([each for each in shown if len(attention_maps.pick_unlike_questions(each)) > 1] or shown)[
        :MAPPED_SCENES
    ]
    figures = attention_maps.draw_report_maps(model, processor, scenes)
    return [encode_png(figure) for figure in figures], [scene.id for scene in scenes]


def encode_png(figure) -> bytes:
    """A figure with few colours: a tenth of its size."""
    from PIL import Image

    drawn, found = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    Image.open(drawn).convert("RGB").quantize(MAP_COLOURS, dither=Image.Dither.NONE).save(
        found, "png", optimize=True
    )
    return found.getvalue()
