"""Attention maps of a report: drawn from the trained model once, kept with the report, missed plainly."""

import dataclasses
import io
import json
import shutil

import pytest
from factories import make_model, make_processor, picture
from made_cells import runner
from PIL import Image

from ablations import report_files
from ablations.outcomes import Report
from ablations.writing import maps, page, write
from ablations.writing.grids import sentences
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells
from experiments.store.plan import plan_stages
from experiments.store.store import Store
from llm_adapters.saved import MODEL_FOLDER


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(cells with stages, store): a cell without and one with EmbQ, the latter's model on disk."""
    folder = tmp_path_factory.mktemp("maps")
    turns = [
        {"from": who, "value": words}
        for words in ("what is this ?", "a dog", "where ?", "here")
        for who in ["human" if words.endswith("?") else "gpt"]
    ]
    for i in range(5):
        picture(i).save(folder / f"{i}.png")
    (folder / "test.json").write_text(
        json.dumps(
            [
                {"id": str(i), "image": f"{i}.png", "conversations": turns[: 2 if i == 1 else 4]}
                for i in range(5)
            ]
        )
    )

    def of_kind(kind):
        def finetune(config, inputs, out, report, roles=()):  # noqa: ARG001  a runner's arguments
            model = make_model(query_module="embq" if config.query_module else None)
            model.save_pretrained(out / MODEL_FOLDER)
            make_processor(model).save_pretrained(out / MODEL_FOLDER)

        return finetune if kind == "finetune" else runner(10)(kind)

    store = Store(folder / "runs", runner=of_kind)
    cells = make_cells(
        parse_settings(
            ["compressor=sap,sap+embq", f"data.test={folder / 'test.json'}", f"out={folder / 'runs'}"]
        )
    )
    with store.open_root():
        jobs = [(cell, plan_stages(cell.config)) for cell in cells]
        for _, stage in jobs:
            store.compute(stage)
    return jobs, store


def new() -> Report:
    return Report([], {"cells": 0})


def test_first_scenes_with_unlike_questions(finished, tmp_path):
    report = new()
    maps.add_maps(report, *finished, tmp_path)
    assert report.provenance["maps"]["of"] == "sap+embq, seed 0"
    assert report.provenance["maps"]["scenes"] == ["0", "2", "3"]
    shapes = {Image.open(io.BytesIO(each)).size for each in report.maps}
    assert len(report.maps) == 3 and min(min(shapes)) > 100


def test_kept_with_the_report_and_drawn_again_for_another_model(finished, tmp_path, monkeypatch):
    (plain, (cell, stage)), store = finished
    report = new()
    maps.add_maps(report, [plain, (cell, stage)], store, tmp_path)
    report_files.save_report(report, tmp_path)
    drawn = []
    monkeypatch.setattr(maps, "draw_maps", lambda *_: drawn.append(1) or ([b"new"], ["9"]))
    again, other = new(), new()
    maps.add_maps(again, [plain, (cell, stage)], store, tmp_path)
    assert (again.maps, again.provenance["maps"]) == (report.maps, report.provenance["maps"]) and not drawn
    maps.add_maps(other, [(cell, plan_stages(dataclasses.replace(cell.config, seed=1)))], store, tmp_path)
    assert other.maps == [b"new"] and drawn


def test_without_a_query_module_a_compressor_s_own_weights(finished, tmp_path):
    (plain, _), store = finished
    report = new()
    maps.add_maps(report, [plain], store, tmp_path)
    assert report.provenance["maps"]["of"] == "sap, seed 0" and len(report.maps) == 3
    report_files.save_report(report, tmp_path)
    again = new()
    maps.add_maps(again, [plain], Store(tmp_path / "empty"), tmp_path)
    assert again.maps == report.maps


def test_compressors_without_learned_weights_have_none(finished, tmp_path):
    (cell, stage), _ = finished[0]
    pooled = make_model(compressor="avg_pool", query_module=None)
    store = Store(tmp_path / "runs")
    shutil.copytree(finished[1].root, store.root)
    folder = store.locate_result(stage.inputs["finetune"]) / MODEL_FOLDER
    shutil.rmtree(folder)
    pooled.save_pretrained(folder)
    make_processor(pooled).save_pretrained(folder)
    report = new()
    maps.add_maps(report, [(cell, stage)], store, tmp_path)
    assert report.maps == [] and "maps" not in report.provenance
    assert not maps.tells_weights("none") and not maps.tells_weights("identity")


def test_what_is_gone_is_said(finished, tmp_path):
    (_, (cell, stage)), store = finished
    elsewhere = Store(tmp_path / "runs")
    shutil.copytree(store.root, elsewhere.root)
    shutil.rmtree(elsewhere.locate_result(stage.inputs["finetune"]) / MODEL_FOLDER)
    report = new()
    maps.add_maps(report, [(cell, stage)], elsewhere, tmp_path)
    [note] = sentences.explain_missing_maps(report)
    assert report.maps == [] and note.startswith("No attention maps: ") and MODEL_FOLDER in note


def test_written_in_every_form(finished, tmp_path):
    report = new()
    maps.add_maps(report, *finished, tmp_path / "first")
    words = write.render_markdown_report(report, [], ["said"], ["a note"], [])
    assert words.count("](plots/attention-") == 3 and "sap+embq, seed 0" in words
    report_files.save_report(report, tmp_path)
    assert report_files.load_report(tmp_path).maps == report.maps
    assert page.embed_png(report.maps[0]).startswith('<img src="data:image/png;base64,iVBOR')
