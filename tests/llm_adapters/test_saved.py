"""Saved models of both kinds by their folder: ours, and another MLLM with a compressor attached."""

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


def test_another_with_a_compressor(tmp_path):
    model, processor = attached("llava")
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="a model of type llava with slothkit"):
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
