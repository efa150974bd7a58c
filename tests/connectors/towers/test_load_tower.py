"""Pretrained towers from local checkpoints. No hub is reached."""

import json
import logging

import open_clip
import pytest
import torch
from text_towers import save_open_clip_model
from transformers import AutoConfig, AutoModel

from compressors.errors import UsageError
from connectors.towers.build import build_tower, load_tower
from connectors.towers.huggingface import FAMILIES
from connectors.versions import find_vision_blocks, find_vision_parts, is_at_least

torch.set_num_threads(1)
VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
VISION = {**VISION, "image_size": 30, "patch_size": 7}
TEXT = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {**TEXT, "vocab_size": 9, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
COMPOSITE = {"vision_config": {**VISION, "intermediate_size": 48}, "text_config": TEXT}
PIXELS = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(0))


def checkpoint(path, model_type: str, **config):
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **config)).eval()
    model.save_pretrained(path)
    return model


def hidden_state(vision_model, select_layer: int) -> torch.Tensor:
    if is_at_least("5.6"):
        return vision_model(PIXELS, output_hidden_states=True).hidden_states[select_layer][:, -16:]
    found = []  # what the block hands on: a part of a model tells no hidden states there
    block = find_vision_blocks(vision_model)[select_layer]
    hook = block.register_forward_hook(lambda *call: found.append(call[2][:, -16:]))
    vision_model(PIXELS)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("select_layer", [-1, -2])
@pytest.mark.parametrize("model_type", ["siglip", "clip"])
def test_from_a_whole_checkpoint(model_type, select_layer, tmp_path, caplog):
    whole = checkpoint(tmp_path, model_type, **COMPOSITE)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        tower = load_tower(tmp_path, select_layer)
    assert "REPORT" not in caplog.text  # of the text model's weights, for one
    assert not tower.training and tower.config.model_type == f"{model_type}_vision_model"
    assert torch.equal(tower(PIXELS).flatten(1, 2), hidden_state(whole.vision_model, select_layer))
    assert len(find_vision_blocks(tower)) == tower.depth


@pytest.mark.parametrize("model_type", ["dinov2", "dinov2_with_registers"])
def test_from_a_vision_only_checkpoint(model_type, tmp_path):
    model = checkpoint(tmp_path, model_type, **VISION)
    tower = load_tower(str(tmp_path), dtype=torch.float32)
    assert torch.equal(tower(PIXELS).flatten(1, 2), hidden_state(model, -2))
    assert load_tower(tmp_path, dtype=torch.bfloat16)(PIXELS).dtype == torch.bfloat16


def test_preprocessing_comes_with_the_checkpoint(tmp_path):
    checkpoint(tmp_path, "siglip", **COMPOSITE)
    tower = load_tower(tmp_path)
    assert (tower.image_mean, tower.resample) == (FAMILIES["siglip_vision_model"].mean, "bicubic")
    stated = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    tower = load_tower(tmp_path)
    assert (tower.image_mean, tower.image_std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    again = build_tower(AutoConfig.for_model(**tower.config.to_dict()))
    assert (again.image_mean, again.resample) == (tower.image_mean, "bilinear")


def test_missing_weights_are_an_error_and_dropped_ones_are_not(tmp_path):
    model = checkpoint(tmp_path, "siglip_vision_model", **VISION, intermediate_size=48)
    parts = find_vision_parts(model)
    del parts.post_layernorm, parts.head
    model.save_pretrained(tmp_path)
    load_tower(tmp_path)
    del parts.encoder.layers[1].mlp
    model.save_pretrained(tmp_path)
    name = f"{'' if is_at_least('5.6') else 'vision_model.'}encoder.layers.1.mlp.fc1.bias"
    with pytest.raises(UsageError, match=f"4 weights are missing, such as {name};"):
        load_tower(tmp_path)


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="no such directory, or it has no config.json$"):
        load_tower(tmp_path / "nowhere")
    AutoConfig.for_model("dinov2", **VISION).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="cannot be loaded: Error no file named"):
        load_tower(tmp_path)

    def unreachable(*_, **__):
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(
        UsageError, match=r"connect to the hub. Check your connection; .*\(hf download google/siglip-x\)$"
    ) as error:
        load_tower("google/siglip-x")
    assert "\n" not in str(error.value)


def test_other_models_are_no_tower(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "flashslot"}')
    with pytest.raises(UsageError, match="flashslot"):
        load_tower(tmp_path)
    AutoConfig.for_model("llama").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="'llama' is no vision tower known here; known: siglip_vision_model"):
        load_tower(tmp_path)


@pytest.fixture(params=["native", "timm"])
def tiny_clip(request, tmp_path) -> str:
    """A tiny CLIP under a name that open_clip knows, and its checkpoint; `open_clip:...` for it."""
    vision = {"width": 32, "layers": 4, "head_width": 8, "image_size": 28, "patch_size": 7}
    if request.param == "timm":
        vision = {"timm_model_name": "test_vit4", "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    text = {"width": 8, "heads": 1, "layers": 1, "context_length": 4, "vocab_size": 9}
    model = {"embed_dim": 16, "quick_gelu": request.param == "native", "vision_cfg": vision, "text_cfg": text}
    return save_open_clip_model(tmp_path, f"slothkit-test-{request.param}", model)


def test_from_open_clip(tiny_clip, tmp_path):
    _, name, path = tiny_clip.split(":")
    whole = open_clip.create_model(name, pretrained=path).visual.eval()
    tower = load_tower(tiny_clip)
    image = torch.randn(2, 3, tower.image_size, tower.image_size)
    expected = whole.forward_intermediates(image, indices=[tower.depth - 1], output_fmt="NLC")
    expected = expected["image_intermediates"][0]
    torch.testing.assert_close(tower(image).flatten(1, 2), expected, rtol=0, atol=1e-6)
    assert not tower.training and tower.image_mean == whole.preprocess_cfg["mean"]

    tower.backbone.save_pretrained(tmp_path / "saved")
    saved = load_tower(tmp_path / "saved", select_layer=-1)  # what was saved has been cut already
    assert torch.equal(saved(image), tower(image)) and saved.image_mean == tower.image_mean


def test_open_clip_errors(monkeypatch):
    with pytest.raises(UsageError, match="open_clip has no model 'ViT-B-33'; did you mean"):
        load_tower("open_clip:ViT-B-33:openai")
    with pytest.raises(UsageError, match="say which weights, open_clip:ViT-B-32:TAG_OR_FILE; tags: openai, "):
        load_tower("open_clip:ViT-B-32")
    with pytest.raises(UsageError, match="select_layer=-13: .* 12 blocks"):
        load_tower("open_clip:ViT-B-32:openai", select_layer=-13)

    def unreachable(*_, **__):
        raise RuntimeError("Failed to download weights for tag 'webli': no network\nmore")

    monkeypatch.setattr(open_clip, "create_model", unreachable)
    with pytest.raises(UsageError, match="no network more; give a checkpoint file, .* tag: webli$") as error:
        load_tower("open_clip:ViT-SO400M-14-SigLIP-384")
    assert "\n" not in str(error.value)
