"""Attention maps of a report (Figure 4 of the paper): where a trained model looks in a few test scenes.

The model is that of the first finished cell with a query module that is still there or was drawn before;
where no cell has one, of the first whose compressor has learned to weigh patches. The scenes are the first of
its test data with unlike questions: no hand picks them.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablations import report_files
from ablations.outcomes import Report
from compressors.base import Compressor, registry
from compressors.errors import UsageError
from experiments.config.cells import Cell
from experiments.config.schema import BLIND_COMPRESSOR
from experiments.store.plan import Stage
from experiments.store.store import Store

if TYPE_CHECKING:  # matplotlib: only a report whose maps are drawn anew waits for it here
    from matplotlib.figure import Figure

MAPPED_SCENES = 3
MAP_COLOURS = 256  # of a PNG's palette, the most that it can have: a colour bar needs them


def add_maps(
    report: Report,
    finished: Sequence[tuple[Cell, Stage]],
    store: Store,
    folder: Path,
    earlier_report: Report | None = None,
) -> None:
    """Draw the maps of a report, or take those of the same model from the report before in `folder`, or from
    an earlier one. A model or pictures that are gone leave a note in their place."""
    drawn_reports: dict[str, Report] = {}  # key of the model's stage -> the report that has its maps
    # the one in `folder` wins
    for candidate in (earlier_report, find_written_report(folder)):
        if candidate is not None and candidate.maps:
            drawn_reports[candidate.provenance.get("maps", {}).get("stage")] = candidate
    mapped_cell = choose_mapped_cell(finished, store, drawn_reports)
    if mapped_cell is None:
        add_compressor_maps(report, finished, store, drawn_reports)
        return
    cell, stage = mapped_cell
    key = stage.inputs["finetune"].key
    if key in drawn_reports:
        report.maps = drawn_reports[key].maps
        report.provenance["maps"] = drawn_reports[key].provenance["maps"]
        return
    map_provenance: dict[str, Any] = {"of": f"{cell.label}, seed {cell.config.seed}", "stage": key}
    try:
        report.maps, map_provenance["scenes"] = draw_maps(stage, store)
    except UsageError as error:
        map_provenance["missing"] = str(error)
    report.provenance["maps"] = map_provenance


def add_compressor_maps(
    report: Report,
    finished: Sequence[tuple[Cell, Stage]],
    store: Store,
    drawn_reports: Mapping[str, Report],
) -> None:
    """The maps of the first compressor with learned weights, each tried once; none where there is no such."""
    tried_compressors = set()
    for cell, stage in finished:
        name = cell.config.compressor
        model_stage = stage.inputs["finetune"]
        key = model_stage.key
        if key in drawn_reports:
            report.maps = drawn_reports[key].maps
            report.provenance["maps"] = drawn_reports[key].provenance["maps"]
            return
        if name in tried_compressors or not tells_weights(name) or not store.find_whole_result(model_stage):
            continue
        tried_compressors.add(name)
        try:
            report.maps, scenes = draw_maps(stage, store)
        except UsageError:  # nothing to show, which is no fault of a compressor
            continue
        of = f"{cell.label}, seed {cell.config.seed}"
        report.provenance["maps"] = {"of": of, "stage": key, "scenes": scenes}
        return


def tells_weights(name: str) -> bool:
    """Whether a compressor has a method of its own that weighs patches."""
    if name == BLIND_COMPRESSOR:
        return False
    return registry.get(name).attention is not Compressor.attention


def choose_mapped_cell(
    finished: Sequence[tuple[Cell, Stage]], store: Store, drawn_reports: Mapping[str, Report]
) -> tuple[Cell, Stage] | None:
    """The first cell with a query module whose model is there or was drawn before; else the first with a
    query module, so that the report says what is missing."""
    fallback: tuple[Cell, Stage] | None = None
    for cell, stage in finished:
        if not cell.config.query_module:
            continue
        model_stage = stage.inputs["finetune"]
        if model_stage.key in drawn_reports or store.find_whole_result(model_stage):
            return cell, stage
        if fallback is None:
            fallback = (cell, stage)
    return fallback


def find_written_report(folder: Path) -> Report | None:
    """The report that was written to `folder`, if there is one."""
    try:
        return report_files.load_report(folder)
    except UsageError:
        return None


def draw_maps(stage: Stage, store: Store) -> tuple[list[bytes], list[str]]:
    """PNG files and the scenes' ids. UsageError where the model or its data are gone. Imports torch."""
    from experiments import attention_maps
    from experiments.data import roles
    from experiments.models import saved

    inputs = {}
    for kind in {"finetune", "data"} & stage.inputs.keys():
        needed_stage = stage.inputs[kind]
        fault = store.find_fault(needed_stage)
        if fault is not None:
            raise UsageError(f"{needed_stage.name}: {fault}")
        inputs[kind] = store.locate_result(needed_stage)
    model, processor = saved.load_trained_model(inputs["finetune"])
    if model.query_module is None and not any(True for _ in model.compressor.parameters()):
        raise UsageError(f"compressor {model.config.compressor} has learned no weights")
    samples = roles.load_role_samples(stage.config, inputs, "test", check_images=False)
    scenes = []
    unlike_scenes = []  # two questions of one picture show best that the module looks where a question asks
    for sample in samples:
        if sample.images:
            scenes.append(sample)
            if len(attention_maps.pick_unlike_questions(sample)) > 1:
                unlike_scenes.append(sample)
    mapped_scenes = (unlike_scenes or scenes)[:MAPPED_SCENES]
    figures = attention_maps.draw_report_maps(model, processor, mapped_scenes)
    return list(map(encode_png, figures)), [scene.id for scene in mapped_scenes]


def encode_png(figure: "Figure") -> bytes:
    """A figure with few colours: a tenth of its size."""
    from PIL import Image

    drawing = io.BytesIO()
    figure.savefig(drawing, format="png", dpi=110)
    reduced = Image.open(drawing).convert("RGB").quantize(MAP_COLOURS, dither=Image.Dither.NONE)
    file = io.BytesIO()
    reduced.save(file, "png", optimize=True)
    return file.getvalue()
