"""Modules of a model's own that PEFT copies (`modules_to_save`): what is attached acts in the copies."""

import copy
import pickle

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, PeftModel, get_peft_model
from reuse_families import (
    EMBQ,
    SAP,
    attached,
    family_params,
    inputs,
    make_model,
    make_processor,
    train_loss,
    two_rows,
)

from compressors.errors import UsageError
from llm_adapters import reuse
from llm_adapters.reuse.wrapping import WrappedMethod

# whose tokens are as wide as the windows that mergers project
WINDOWS = {"compressor": "pixel_shuffle", "rate": 2, "grid_policy": "ceil"}
# of every kind: the modules that project or make room for what does, and a compressor that they are used with
PROJECTORS = {
    "llava": ("multi_modal_projector", SAP),
    "gemma3": ("multi_modal_projector", SAP),
    "aya_vision": ("multi_modal_projector", WINDOWS),
    "mistral3": ("multi_modal_projector", WINDOWS),
    "idefics3": ("connector", WINDOWS),
    "qwen2_5_vl": ("visual.merger", WINDOWS),
    "qwen3_vl": ("visual", WINDOWS),
    "glm4v": ("visual", WINDOWS),
    "ovis2": ("visual_embeddings_table", WINDOWS),
    "gemma3n": ("embed_vision", SAP),
    "gemma4": ("embed_vision", SAP),
}
over_projectors = pytest.mark.parametrize("family", family_params(*PROJECTORS))


def wrap(model, *names: str) -> PeftModel:
    """With these modules and the attached parts trained whole, and LoRA that changes nothing yet."""
    language = model.slothkit.family.language_model
    modules = [*names, *reuse.name_trained_parts(model)]
    lora = LoraConfig(r=2, target_modules=rf".*{language}.*q_proj", modules_to_save=modules)
    return get_peft_model(model, lora).eval()


def change_trained_weights(tuned: PeftModel) -> None:
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)


def assert_nothing_attached(model) -> None:
    for module in model.modules():
        assert not any(isinstance(value, WrappedMethod) for value in vars(module).values())
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        assert not any(hasattr(getattr(hook, "__self__", None), "compressor") for hook in hooks)


@over_projectors
def test_copies_of_own_modules_get_the_models_own_gradients(family):
    name, compressor = PROJECTORS[family]
    model, processor = attached(family, **compressor)
    assert model.slothkit.projector is None
    batch = inputs(processor, two_rows(family, marked=True))
    train_loss(model, batch).backward()
    expected = {key: weight.grad for key, weight in model.named_parameters()}
    model.zero_grad()
    tuned = wrap(model, name, "embed_tokens")
    train_loss(tuned, batch).backward()
    compared = []
    for key, weight in tuned.named_parameters():
        own = key.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        if ".modules_to_save." in key and expected[own] is not None:
            torch.testing.assert_close(weight.grad, expected[own], atol=1e-4, rtol=1e-3)
            compared.append(own)
    for part in (name, "embed_tokens", "slothkit.query_module.tokens"):
        assert any(part in key for key in compared)


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl", "glm4v"))
def test_an_adapter_that_trains_a_models_own_projector(family, tmp_path):
    """Its folder brings back what was trained, and nothing is left in the model that it is merged into."""
    name, compressor = PROJECTORS[family]
    base, processor = attached(family, **compressor)
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, processor = reuse.load(tmp_path / "base")
    tuned = wrap(model, name, "embed_tokens")
    change_trained_weights(tuned)
    tuned.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    loaded, again = reuse.load(tmp_path / "adapter")
    batch = inputs(again, two_rows(family, marked=True))
    with torch.no_grad():
        expected = tuned(**batch).logits
        assert torch.equal(loaded.eval()(**batch).logits, expected)
        with tuned.disable_adapter():
            assert torch.equal(tuned(**batch).logits, base(**batch).logits)
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-4, rtol=1e-4)
    reuse.detach(merged, processor)
    assert_nothing_attached(merged)


@over_projectors
def test_detach_from_copies_of_own_modules(family):
    """The adapter goes on without what was attached, every adapter of the model."""
    name, _ = PROJECTORS[family]
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "divprune", tokens=9, new_projector="linear", **EMBQ)
    language = reuse.FAMILIES[family].language_model
    lora = LoraConfig(r=2, target_modules=rf".*{language}.*q_proj", modules_to_save=[name, "embed_tokens"])
    tuned = get_peft_model(model, lora).eval()
    tuned.add_adapter("second", lora)
    reuse.detach(tuned, processor)
    assert_nothing_attached(tuned)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        expected = make_model(family)(**batch).logits
        for adapter in ("default", "second"):
            tuned.set_adapter(adapter)
            torch.testing.assert_close(tuned(**batch).logits, expected)


@pytest.mark.parametrize(
    ("compressor", "knobs"), [("visionzip", {"tokens": 9}), ("token_packer", {"levels": [1, 2]})]
)
def test_copies_of_the_tower_are_read(compressor, knobs):
    """Cues and hidden states of the copy that runs."""
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, compressor, **knobs)
    batch = inputs(processor, two_rows("llava"))
    tuned = wrap(model, "vision_tower")
    change_trained_weights(tuned)
    with torch.no_grad():
        trained = tuned(**batch).logits
        merged = tuned.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, trained, atol=1e-4, rtol=1e-4)
    reuse.detach(merged, processor)
    assert_nothing_attached(merged)


def test_copies_of_a_layer_that_a_query_module_and_a_pruner_act_in():
    model, processor = attached("llava")
    reuse.prune(model, "fastv", layer=2, ratio=0.5)
    batch = inputs(processor, two_rows("llava", marked=True))
    with torch.no_grad():
        expected = model(**batch).logits
    tuned = wrap(model, "layers.1")
    assert torch.equal(tuned(**batch).logits, expected)
    train_loss(tuned, batch).backward()
    assert model.slothkit.query_module.blocks[0].up.weight.grad.abs().sum() > 0


def test_a_copy_of_a_model_with_copied_modules_is_its_own():
    model, processor = attached("llava")
    tuned = wrap(model, "multi_modal_projector", "embed_tokens")
    copies = copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned))
    batch = inputs(processor, two_rows("llava", marked=True))
    with torch.no_grad():
        expected = tuned(**batch).logits
        for other in copies:
            assert torch.equal(other(**batch).logits, expected)
            change_trained_weights(other)
            assert not torch.equal(other(**batch).logits, expected)
            assert torch.equal(tuned(**batch).logits, expected)


def test_parts_that_are_copied_by_themselves_are_not_the_models():
    model, _ = attached("llava")
    parts = copy.deepcopy(model.slothkit)
    assert parts is not model.slothkit
    for weight, own in zip(parts.parameters(), model.slothkit.parameters(), strict=True):
        assert torch.equal(weight, own) and weight is not own


@pytest.mark.parametrize("order", ["placed", "attached"])
def test_own_modules_that_accelerate_has_placed(order):
    """What is done first: PEFT takes accelerate's hook off a copy and puts a new one on."""
    model, processor = make_model("llava"), make_processor("llava")
    plain = inputs(processor, two_rows("llava"))
    with torch.no_grad():
        expected = model(**plain).logits
    own = ["model.vision_tower", "model.multi_modal_projector", "model.language_model", "lm_head"]
    if order == "attached":
        reuse.attach(model, processor, **SAP, **EMBQ)
        own.append("slothkit")
    dispatch_model(model, dict.fromkeys(own, "cpu"), "cpu", force_hooks=True)
    assert hasattr(model.model.multi_modal_projector, "_hf_hook")
    if order == "placed":
        reuse.attach(model, processor, **SAP, **EMBQ)
    batch = inputs(processor, two_rows("llava", marked=True))
    with torch.no_grad():
        before = model(**batch).logits
        language = model.slothkit.family.language_model
        copied = ["multi_modal_projector", "embed_tokens"]
        lora = LoraConfig(target_modules=rf".*{language}.*q_proj", modules_to_save=copied)
        tuned = get_peft_model(model, lora).eval()
        assert torch.equal(tuned(**batch).logits, before)
        reuse.detach(tuned, processor)
        assert_nothing_attached(tuned)
        assert torch.equal(tuned(**plain).logits, expected)


def test_the_attached_parts_as_one_module_to_save():
    model, processor = attached("llava")
    lora = LoraConfig(target_modules=r".*language_model.*q_proj", modules_to_save=["slothkit"])
    tuned = get_peft_model(model, lora)
    with pytest.raises(UsageError, match=r"modules_to_save=slothkit: .*give .*reuse\.name_trained_parts"):
        tuned(**inputs(processor, two_rows("llava", marked=True)))
