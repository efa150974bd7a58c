"""PEFT adapters of models with a compressor attached: what their folders bring back."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reuse_families import SAP, family_params, inputs, make_model, make_processor, two_rows

from compressors.errors import UsageError
from llm_adapters import reuse

SCALES = {"compressor": "matryoshka", "host": "sap", "knobs": {"rate": 1}, "scales": [1, 2, 3]}
TRAINING_FREE = {"compressor": "visionzip", "tokens": 9}


def save_base(family: str, folder, **options) -> None:
    """A model with a compressor attached, and its processor."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, **options)
    save_both(model, processor, folder)


def save_both(model, processor, folder) -> None:
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def wrap(model, **options) -> PeftModel:
    """With LoRA that shows in the answers."""
    language = model.slothkit.family.language_model
    lora = LoraConfig(r=2, target_modules=rf".*{language}.*q_proj", init_lora_weights=False, **options)
    return get_peft_model(model, lora).eval()


def assert_loaded_as_trained(family: str, folder, tuned: PeftModel, processor) -> None:
    loaded, again = reuse.load(folder)
    expected = inputs(processor, two_rows(family))
    batch = inputs(again, two_rows(family))
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, tuned(**expected).logits)
    assert again.chat_template == processor.chat_template


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl"))
def test_an_adapter_of_another_scale_than_its_base(family, tmp_path):
    save_base(family, tmp_path / "base", **SCALES)
    model, processor = reuse.load(tmp_path / "base")
    reuse.pick(model, processor, 2)
    processor.chat_template += "{# of the adapter #}"
    tuned = wrap(model)
    save_both(tuned, processor, tmp_path / "adapter")
    assert_loaded_as_trained(family, tmp_path / "adapter", tuned, processor)


def test_an_adapter_of_a_compressor_without_weights_in_place_of_its_bases(tmp_path):
    save_base("llava", tmp_path / "base", **TRAINING_FREE)
    model, processor = reuse.load(tmp_path / "base")
    reuse.detach(model, processor)
    reuse.attach(model, processor, "divprune", tokens=7)
    tuned = wrap(model)
    save_both(tuned, processor, tmp_path / "adapter")
    assert_loaded_as_trained("llava", tmp_path / "adapter", tuned, processor)


def test_an_adapter_with_weights_of_a_compressor_in_place_of_its_bases(tmp_path):
    save_base("llava", tmp_path / "base", **TRAINING_FREE)
    model, processor = reuse.load(tmp_path / "base")
    reuse.detach(model, processor)
    reuse.attach(model, processor, **SAP)
    tuned = wrap(model, modules_to_save=reuse.name_trained_parts(model))
    save_both(tuned, processor, tmp_path / "adapter")
    assert_loaded_as_trained("llava", tmp_path / "adapter", tuned, processor)


def test_an_adapter_without_weights_of_a_compressor_that_its_base_lacks(tmp_path):
    save_base("llava", tmp_path / "base", **TRAINING_FREE)
    model, processor = reuse.load(tmp_path / "base")
    reuse.detach(model, processor)
    reuse.attach(model, processor, **SAP)
    save_both(wrap(model), processor, tmp_path / "adapter")
    says = (
        r"no weights of slothkit\.compressor, and its base has others: compressor=visionzip instead of sap; "
        r"knobs=.*; give base="
    )
    with pytest.raises(UsageError, match=says):
        reuse.load(tmp_path / "adapter")
