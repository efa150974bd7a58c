"""Attention without positions, for FastV without its position bias, beside what draws random numbers."""

import torch
from helpers.factories import make_batch, make_model, make_processor, picture
from peft import LoraConfig, inject_adapter_in_model

from llm_adapters.conversation import IMAGE, Turn


def collect_gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
    model = make_model("llama", "sap", None)
    lora = LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    inject_adapter_in_model(lora, model.language_model)
    model.set_pruner("fastv", layer=2, ratio=0.5, rotary=False)
    if checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    model.language_model.train()
    batch = make_batch(make_processor(model), [([Turn(f"{IMAGE}\nWhat?", "A dog.")], [picture()])], "right")
    torch.manual_seed(5)
    model(**batch, use_cache=False).loss.backward()
    parameters = model.named_parameters()
    return {name: p.grad for name, p in parameters if "lora" in name and p.grad is not None}


def test_adapters_with_dropout_have_the_same_gradients_when_activations_are_computed_again():
    expected = collect_gradients(checkpointing=False)
    found = collect_gradients(checkpointing=True)
    assert expected and found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
