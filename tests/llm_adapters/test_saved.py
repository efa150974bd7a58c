"""Saved models of both kinds by their folder: ours, and another MLLM with a compressor attached."""

import json
import os
import re

import pytest
import torch
from factories import make_model, make_processor
from reuse_families import answers, attached, inputs, two_rows
from reuse_families import make_model as make_other

from compressors.errors import UsageError
from llm_adapters import saved

CPU = torch.device("cpu")


def test_ours(tmp_path):
    model = make_model()
    for part in (model, make_processor(model)):
        part.save_pretrained(tmp_path / "model")
    loaded, processor = saved.load_saved_model(tmp_path, CPU, torch.bfloat16)
    assert loaded.dtype == torch.bfloat16 and not loaded.training
    assert processor.image_tokens == model.num_image_tokens()
    frequencies = {name: each for name, each in loaded.named_buffers() if "inv_freq" in name}
    assert frequencies and all(each.dtype == torch.float32 for each in frequencies.values())


def test_a_folder_says_how_it_is_loaded(tmp_path):
    model = make_model()
    model.set_pruner("fastv", ratio=0.5)
    model.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "import llm_adapters.auto" in card and "| pruner | `fastv`, `ratio=0.5` |" in card
    (tmp_path / "README.md").write_text("mine")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_another_with_a_compressor(tmp_path):
    model, processor = attached("llava")
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    with pytest.raises(
        UsageError, match="another MLLM with a compressor in it; load it with llm_adapters.reuse.l"
    ):
        saved.load_saved_model(tmp_path, CPU)
    loaded, again = saved.load_saved_model(tmp_path, CPU, attached=True)
    rows = two_rows("llava", marked=True)
    assert answers(loaded, inputs(again, rows)) == answers(model, inputs(processor, rows))


def test_another_without_one(tmp_path):
    model = make_other("llava")
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="a model of type llava, not slothkit"):
        saved.find_model_folder(tmp_path, attached=True)


DAMAGES = {
    "config.json": ["", "[]", "{}", '{"model_type": "slothkit", "text_config": 3}'],
    "tokenizer.json": ["", "[]", '{"a": 1}'],
    "processor_config.json": ["", "[]"],
    "model.safetensors": ["", "no weights"],
}
DAMAGED_FILES = [(file, text) for file, texts in DAMAGES.items() for text in texts]


@pytest.mark.parametrize(("file", "text"), DAMAGED_FILES)
def test_a_damaged_folder_is_one_line(tmp_path, file, text):
    model = make_model()
    for part in (model, make_processor(model)):
        part.save_pretrained(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(UsageError, match=str(tmp_path)) as error:
        saved.load_saved_model(tmp_path, CPU)
    assert "\n" not in str(error.value)


def edit_json(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


ODD_VALUES = [
    ("config.json", {"image_token_id": None}, "config.json has image_token_id=None, the tokenizer 4; save"),
    ("config.json", {"query_token_id": 4}, "config.json has query_token_id=4, the tokenizer 5; save"),
    ("config.json", {"select_layer": "-2"}, "select_layer='-2': expected int, got str"),
    ("config.json", {"compressor_knobs": [1]}, "compressor_knobs="),
    ("generation_config.json", {"eos_token_id": ""}, "generation_config.json: eos_token_id='': expected"),
    ("generation_config.json", {"do_sample": "yes"}, "generation_config.json: do_sample='yes': expected"),
    ("generation_config.json", {"repetition_penalty": [1]}, "repetition_penalty="),
    ("tokenizer_config.json", {"bos_token": " "}, "its tokenizer gives ' ' the id 320, the model has 320"),
    ("tokenizer_config.json", {"pad_token": "<new>"}, "gives '<new>' the id 320, the model has 320 emb"),
]
ODD_COUNTS = [
    ({"image_tokens": 9}, "processor_config.json has image_tokens=9, but sap makes 4 of 84x84 pixels; set"),
    ({"size": {"height": 70, "width": 84}}, "an image of 70x84 pixels: rate="),
]
ODD_IMAGE_VALUES = [
    ({"image_mean": ["*a", 0.5, 0.5]}, "image_mean="),
    ({"image_std": [0.5, 0.0, 0.5]}, "image_std=.*must be finite, and a deviation not zero"),
    ({"image_std": 0.0}, "image_std=0.0: must be finite, and a deviation not zero"),
    ({"image_mean": [0.5, float("nan"), 0.5]}, "image_mean=.*must be finite"),
    ({"rescale_factor": "x"}, "rescale_factor='x': expected"),
    ({"do_resize": "x"}, "do_resize='x': expected"),
    ({"size": {"height": -1, "width": 84}}, "size=.*needs a height and a width of at least 1"),
    ({"resample": 99}, "resample=99: choose one of"),
]


@pytest.fixture
def folder(tmp_path):
    model = make_model("llama")
    for part in (model, make_processor(model)):
        part.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("file", "values", "message"), ODD_VALUES)
def test_values_of_another_type_or_model_are_refused_when_it_is_loaded(folder, file, values, message):
    edit_json(folder / file, **values)
    with pytest.raises(UsageError, match=re.escape(message)) as error:
        saved.load_saved_model(folder, CPU)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("values", "message"), ODD_COUNTS)
def test_a_processor_of_another_compressor_is_refused(folder, values, message):
    path = folder / "processor_config.json"
    found = json.loads(path.read_text())
    images = found["image_processor"]
    if "size" in values:
        values = {"image_processor": {**images, **values}}
    edit_json(path, **values)
    with pytest.raises(UsageError, match=message) as error:
        saved.load_saved_model(folder, CPU)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_a_processor_of_no_images_and_of_a_picked_scale_are_taken(tmp_path):
    blind, nested = make_model("llama"), make_model("llama", "matryoshka")
    for model, count in ((blind, 0), (nested, 1)):
        processor = make_processor(model)
        processor.image_tokens = count
        for part in (model, processor):
            part.save_pretrained(tmp_path)
        assert saved.load_saved_model(tmp_path, CPU)[1].image_tokens == count


@pytest.mark.parametrize(("values", "message"), ODD_IMAGE_VALUES)
def test_an_image_processor_that_would_fail_at_the_first_picture(folder, values, message):
    path = folder / "processor_config.json"
    images = json.loads(path.read_text())["image_processor"]
    edit_json(path, image_processor={**images, **values})
    with pytest.raises(UsageError, match=message) as error:
        saved.load_saved_model(folder, CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_pipe_in_a_folder_is_not_waited_for(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UsageError, match=f"{name}: not a regular file"):
        saved.load_saved_model(folder, CPU)


def test_settings_that_transformers_has_are_taken(folder):
    settings = {"do_sample": True, "temperature": 1, "top_k": 5, "eos_token_id": [3, 2], "stop_strings": "x"}
    edit_json(folder / "generation_config.json", **settings)
    model, _ = saved.load_saved_model(folder, CPU)
    assert model.generation_config.temperature == 1
