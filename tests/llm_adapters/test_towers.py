"""The composed model around every family of vision towers, from transformers and from open_clip."""

import copy

import pytest
import torch
from factories import make_batch, make_config, make_model, make_processor, picture
from transformers import AutoModelForImageTextToText

from connectors.towers.build import build_tower
from llm_adapters.conversation import IMAGE, Template, Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 84}
SIZES = {**SIZES, "patch_size": 14}
TIMM = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 84, "patch_size": 14}
NATIVE = {"width": 24, "layers": 3, "head_width": 12, "image_size": 84, "patch_size": 14}
OPEN_CLIP = {"model_type": "slothkit_open_clip_vision"}
TOWERS = {
    "siglip": {"model_type": "siglip_vision_model", "intermediate_size": 32, **SIZES},
    "clip": {"model_type": "clip_vision_model", "intermediate_size": 32, **SIZES},
    "dinov2": {"model_type": "dinov2", **SIZES},
    "open_clip": {**OPEN_CLIP, "model_name": "ViT-B-32-quickgelu", "vision_cfg": NATIVE},
    "open_clip_siglip": {**OPEN_CLIP, "model_name": "ViT-B-16-SigLIP", "timm_kwargs": TIMM},
    "open_clip_eva": {**OPEN_CLIP, "model_name": "EVA02-B-16", "timm_kwargs": TIMM},
}
ROWS = [([Turn(f"{IMAGE}\nWhat?", "A dog."), Turn("And?", "red")], [picture()]), ([Turn("Hi", "no")], [])]


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_save_and_load(tower, tmp_path):
    model = make_model(vision=tower, prompt=Template(system=""))
    assert model.num_image_tokens() == 4
    with torch.no_grad():  # far from how any module initialises itself
        for parameter in model.vision_tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    batch = make_batch(make_processor(model), ROWS)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.num_parameters() == model.num_parameters()


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_given_tower_keeps_its_weights(tower):
    given = build_tower(tower)
    with torch.no_grad():
        for parameter in given.parameters():
            parameter.normal_()
    before = copy.deepcopy(given.state_dict())
    FlashSlothForConditionalGeneration(make_config(vision=tower), given)
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())


@pytest.mark.parametrize("tower", TOWERS.values(), ids=TOWERS)
def test_trains_through_the_tower(tower):
    """By EmbQ's path and by the visual tokens', also with recomputation."""
    model = make_model(vision=tower, prompt=Template(system="")).train()
    model.compressor.scorer[2].p = 0.0
    batch, gradients = make_batch(make_processor(model), ROWS), []
    for _ in range(2):
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in model.vision_tower.named_parameters()})
        model.vision_tower.gradient_checkpointing_enable()
    for name, gradient in gradients[0].items():
        assert name.endswith("k_proj.bias") or "key.bias" in name or gradient.abs().sum() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
