"""A released FlashSloth checkpoint, converted, and trained on with data of one's own."""

import json
import shutil
from pathlib import Path

import small_runs
import torch
from factories import byte_tokenizer
from transformers import AutoModelForCausalLM, SiglipVisionModel

from experiments.stages import train
from experiments.stages.checks import check_cell_config
from llm_adapters.released.conversion import convert_checkpoint
from llm_adapters.saved import load_saved_model

GOLDEN = Path(__file__).parents[2] / "golden" / "flashsloth"


def convert_golden(folder: Path) -> Path:
    """The golden checkpoint as a model of ours, with a processor."""
    released = folder / "released"
    released.mkdir()
    shutil.copy(GOLDEN / "config.json", released)
    shutil.copy(GOLDEN / "weights.safetensors", released / "model.safetensors")
    byte_tokenizer().save_pretrained(released)
    convert_checkpoint(released, folder / "converted")
    return folder / "converted"


def test_a_released_checkpoint_is_trained_on(tmp_path):
    converted = convert_golden(tmp_path)
    released, _ = load_saved_model(converted, torch.device("cpu"))
    # backbones of its sizes with other weights: all that counts is taken from the checkpoint
    SiglipVisionModel(released.config.vision_config).save_pretrained(tmp_path / "tower")
    AutoModelForCausalLM.from_config(released.config.text_config).save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    small_runs.write_data(tmp_path, 8)
    config = small_runs.make_config(tmp_path)
    config.data.pretrain = []
    config.tower.select_layer = released.config.select_layer
    config.parts = {"embq": {"released": True, "dim": 48, "at": 8, "num_queries": 9}}
    config.finetune.init = str(converted)
    config.finetune.max_steps = 2
    check_cell_config(config)
    model, processor = train.prepare_model(config, "finetune", {})
    expected = released.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert model.config.query_module_knobs["released"]
    assert processor.image_tokens == 9 and processor.num_queries == 9
    trained = small_runs.run("finetune", config, {}, tmp_path / "two")
    assert not torch.equal(trained["query_module.tokens"], expected["query_module.tokens"])
    settings = json.loads((tmp_path / "two/model/config.json").read_text())
    assert settings["query_module_knobs"]["released"] is True
