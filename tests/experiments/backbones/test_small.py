"""The preset `small`: where its weights lie, its words, sizes that fit, the command that makes it."""

import json

import pytest
import torch
from transformers import Dinov2Config, LlamaConfig

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.backbones.small import __main__ as small
from experiments.config import sources
from experiments.config.cells import make_cells
from experiments.config.sources import resolve_source
from experiments.models import build, pretrained
from experiments.store import keys
from llm_adapters.conversation import MARKERS, Template, Turn, render_turns

REAL = (sources.find_cache_root() / "small/llm/config.json").is_file()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache directory; returns the folder of `small` in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keys.digest_source.cache_clear()
    yield tmp_path / "slothkit/small"
    keys.digest_source.cache_clear()


def cells(*overrides):
    return [cell.config for cell in make_cells(parse_settings(["preset=small", *overrides]))]


@pytest.mark.usefixtures("cache")
def test_missing_weights_name_the_command():
    with pytest.raises(UsageError, match="^small/tower is not there yet; run: .*backbones.small$"):
        resolve_source("cache:small/tower")
    with pytest.raises(UsageError, match="cache:smal: no such weights; there are: cache:small/tower, c"):
        resolve_source("cache:smal")


def test_the_cache_is_known_by_its_content(cache):
    (cache / "llm").mkdir(parents=True)
    config = cache / "llm/config.json"
    config.write_text("{}")
    before = keys.digest_source("cache:small/llm")
    config.unlink()
    config.write_text("{}")
    keys.digest_source.cache_clear()
    assert resolve_source("cache:small/llm") == str(cache / "llm")
    assert keys.digest_source("cache:small/llm") == before
    config.write_text("[]")
    keys.digest_source.cache_clear()
    assert keys.digest_source("cache:small/llm") != before


def test_a_relative_cache_directory_is_ignored(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    assert sources.find_cache_root().is_absolute()


def test_every_compressor_of_the_preset_fits_the_backbones(cache):
    """SmolLM2's and DINOv2-S's sizes without their weights: 16 tokens from everything but identity."""
    LlamaConfig(
        hidden_size=576,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        intermediate_size=1536,
        vocab_size=49152,
    ).save_pretrained(cache / "llm")
    Dinov2Config(
        hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14, use_mask_token=False
    ).save_pretrained(cache / "tower")
    names = "avg_pool", "sap", "pixel_shuffle", "ldp", "ldpv2", "qformer", "identity"
    found = {}
    for config in cells("compressor=" + ",".join(f"{name}+embq" for name in names)):
        with torch.device("meta"):
            model, size = build.build_skeleton(config)
        found[config.compressor_name] = model.num_image_tokens(size, size)
    assert found == dict.fromkeys(names, 16) | {"identity": 144}


def test_prompt_is_the_chat_format():
    prompt = Template(**vars(cells()[0].prompt))
    text = render_turns([Turn("<image>\nwhat ?", "a dog"), Turn("and ?")], prompt)
    for marker in MARKERS:
        text = text.replace(marker, "")
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n \nwhat ? <|im_end|>\n<|im_start|>assistant\n a dog<|im_end|>\n"
        "<|im_start|>user\n and ? <|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.skipif(not REAL, reason="python -m experiments.backbones.small has not been run")
def test_chat_tokens_of_the_real_tokenizer():
    config = cells()[0]
    tokenizer = pretrained.load_tokenizer(config)
    text = f"{config.prompt.assistant} yes{config.prompt.end}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids)[:3] == ["<|im_end|>", "Ċ", "<|im_start|>"]
    assert ids[-1] == tokenizer.eos_token_id and tokenizer.decode(ids[-2]) == " yes"


def fake_part(out, downloads):
    out.mkdir()
    (downloads / "wheel").touch()
    return {"checked": {}}


def test_the_command_keeps_all_or_nothing(cache, monkeypatch, capsys):
    monkeypatch.setattr(small, "NEEDED_PACKAGES", ("torch",))
    monkeypatch.setattr(small, "convert_tower", fake_part)

    def broken(out, downloads):
        fake_part(out, downloads)
        raise UsageError("the language model\nsays Lyon")

    monkeypatch.setattr(small, "convert_llm", broken)
    assert small.main([]) == 2
    assert capsys.readouterr().err == "error: the language model says Lyon\n"
    assert list(cache.parent.iterdir()) == []
    monkeypatch.setattr(small, "convert_llm", fake_part)
    assert small.main([]) == 0
    assert sorted(p.name for p in cache.iterdir()) == ["llm", "record.json", "tower"]
    assert json.loads((cache / "record.json").read_text())["versions"].keys() == {"torch", "transformers"}
    assert [p.name for p in cache.parent.iterdir()] == ["small"]
    assert small.main([]) == 0 and "there already" in capsys.readouterr().out


def test_the_command_says_what_is_missing(cache, monkeypatch, capsys):
    monkeypatch.setattr(small, "NEEDED_PACKAGES", ("torch", "no_such_runtime"))
    assert small.main([]) == 2
    assert capsys.readouterr().err == "error: missing: no_such_runtime; run: pip install no_such_runtime\n"
    other = cache.parent.parent / "mine"
    other.mkdir()
    (other / "thesis.txt").touch()
    assert small.main([f"cache={other}"]) == 2
    assert "choose another cache=" in capsys.readouterr().err


def test_the_old_flag_is_answered_with_its_new_spelling(capsys):
    assert small.main(["--cache", "here"]) == 2
    assert capsys.readouterr().err == "error: --cache: settings are spelled KEY=VALUE; write cache=here\n"
    assert small.main(["--help"]) == 0
    assert "cache=null" in capsys.readouterr().out
