"""Backbones that cannot be a cell's are refused before any stage: other kinds of models, damaged folders."""

import json
import logging
import shutil

import pytest
import torch
from factories import byte_tokenizer, make_llm
from transformers import AutoConfig, AutoModel

from compressors.errors import UsageError
from experiments.config.cells import make_cells
from experiments.config.sources import ASSET_FOLDER
from experiments.models import build, pretrained
from experiments.sweep import __main__ as sweep

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
OTHER_KINDS = {
    "siglip_vision_model": "which is no language model",
    "bert": "which is an encoder",
    "t5": "which has an encoder and a decoder",
}


@pytest.fixture
def llm(tmp_path):
    """A language model's folder that fits the tiny preset's avg_pool."""
    folder = tmp_path / "llm"
    make_llm("phi").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def refuse(**sources: object) -> str:
    """The one line that refuses a cell with these sources, with and without an image path."""
    axes = {key.replace("_", "."): [str(value)] for key, value in sources.items()}
    lines = []
    for compressor in ("avg_pool", "none"):
        [cell] = make_cells({"compressor": [compressor], **axes})
        with pytest.raises(UsageError) as error:
            build.check_model_config(cell.config)
        lines.append(str(error.value))
    assert lines[0] == lines[1] and "\n" not in lines[0]
    return lines[0]


def test_a_whole_folder_is_taken(llm):
    [cell] = make_cells({"compressor": ["avg_pool"], "llm.source": [str(llm)]})
    build.check_model_config(cell.config)


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_of_models(tmp_path, kind):
    AutoModel.from_config(AutoConfig.for_model(kind, **SIZES)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    line = refuse(llm_source=tmp_path)
    assert line.startswith(f"llm.source={tmp_path}: a model of type {kind}, {OTHER_KINDS[kind]}; give a ")


def test_a_language_model_is_no_tower(llm):
    assert refuse(tower_source=llm).startswith(f"tower.source={llm}: 'phi' is no vision tower known here")


def test_no_tokenizer(llm):
    for file in llm.glob("tokenizer*"):
        file.unlink()
    assert f"llm.source={llm}: its tokenizer has no words; save" in refuse(llm_source=llm)


def test_special_tokens_are_no_words(llm):
    path = llm / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"].update(vocab={}, merges=[])
    path.write_text(json.dumps(values))
    assert "has no words" in refuse(llm_source=llm)


def test_the_tokenizer_of_a_larger_model(llm):
    config = make_llm("phi").config
    config.vocab_size = 20
    AutoModel.from_config(config).save_pretrained(llm)
    assert "the model has 20 embeddings" in refuse(llm_source=llm)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model_type": "ph', '{"model_type": "phi", "hidden_size": "x"}']
)
def test_a_damaged_configuration(llm, text):
    (llm / "config.json").write_text(text)
    assert refuse(llm_source=llm).startswith(f"llm.source={llm}: cannot be loaded: ")
    assert refuse(tower_source=llm).startswith(f"tower.source={llm}: cannot be loaded: ")


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"version": "1.0", "model": 3}'])
def test_a_damaged_tokenizer(llm, text):
    (llm / "tokenizer.json").write_text(text)
    assert refuse(llm_source=llm).startswith(f"llm.source={llm}: cannot be loaded: ")


@pytest.mark.parametrize(("key", "source"), [("llm", "llm_source"), ("tower", "tower_source")])
def test_no_weights_and_half_of_them(tmp_path, key, source):
    folder = tmp_path / key
    shutil.copytree(ASSET_FOLDER / "tiny" / key, folder)
    [weights] = folder.glob("*.safetensors")
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    assert f"{weights}: a damaged weight file" in refuse(**{source: folder})
    weights.unlink()
    assert f"{key}.source={folder}: no weights in the folder" in refuse(**{source: folder})


def test_weights_that_are_missing_are_not_made_up(llm):
    values = json.loads((llm / "config.json").read_text())
    values["num_hidden_layers"] += 1
    (llm / "config.json").write_text(json.dumps(values))
    [cell] = make_cells({"compressor": ["avg_pool"], "llm.source": [str(llm)]})
    with pytest.raises(UsageError, match="weights are missing, such as model.layers"):
        pretrained.load_llm(cell.config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"image_mean": 3}, "image_mean=3: expected"),
        ({"image_std": [1, 2]}, "image_std="),
        ({"resample": 99}, "resample=99: choose one of 0"),
    ],
)
def test_a_damaged_image_processor(tmp_path, values, message):
    folder = tmp_path / "tower"
    shutil.copytree(ASSET_FOLDER / "tiny" / "tower", folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    assert message in refuse(tower_source=folder)


@pytest.mark.parametrize("source", ["llm.source", "tower.source"])
@pytest.mark.parametrize("flags", [[], ["--plan"]])
def test_code_in_a_folder_never_runs(llm, tmp_path, monkeypatch, capsys, source, flags):
    """Nobody is asked, whatever stands on standard input."""
    values = json.loads((llm / "config.json").read_text())
    values.update(model_type="stranger", auto_map={"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"})
    (llm / "config.json").write_text(json.dumps(values))
    (llm / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question"))
    out = tmp_path / "runs"
    assert sweep.main([f"{source}={llm}", "compressor=avg_pool", f"out={out}", *flags]) == 2
    error = capsys.readouterr().err
    assert f"{source}={llm}: brings Python code of its own, which is never run here" in error
    assert error.count("\n") == 1 and not out.exists() and not (tmp_path / "ran").exists()


def test_a_kernel_that_bitsandbytes_lacks_is_not_told():
    """peft imports it, so that a plan of LoRA would begin with its warning."""
    build.silence_libraries()
    assert not logging.getLogger("bitsandbytes.backends.cpu.ops").isEnabledFor(logging.WARNING)


def test_the_row_of_an_end_token_that_the_llm_lacks_is_drawn_from_the_cells_seed(llm):
    """Not from what ran before in the process: a resumed stage draws it again."""
    axes = {"compressor": ["avg_pool"], "llm.source": [str(llm)], "prompt.end": ["<|finish|>"]}
    [cell] = make_cells(axes)
    weights = []
    for drawn_before in (0, 3):
        torch.randn(drawn_before)
        model, _ = build.build_model(cell.config)
        weights.append(model.get_input_embeddings().weight)
    assert torch.equal(*weights)
