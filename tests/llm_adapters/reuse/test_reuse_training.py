"""Compressor and EmbQ in multimodal models of transformers: trained, saved, loaded, copied."""

import copy
import pickle
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reuse_families import (
    EMBQ,
    PREFUSION,
    SAP,
    answers,
    assert_same,
    attached,
    family_params,
    family_turns,
    inputs,
    make_model,
    make_processor,
    over_families,
    prompt,
    train_loss,
    two_rows,
)

from connectors.versions import is_at_least
from llm_adapters import reuse


@over_families
def test_gradients_with_and_without_checkpointing(family):
    model, processor = attached(family)
    batch = inputs(processor, two_rows(family, marked=True))
    model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)  # SAP has dropout
        train_loss(model, batch).backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)
    for name, parameter in model.slothkit.named_parameters():
        shift = name.endswith("scorer.3.bias") or name.endswith("k_proj.bias")  # of all logits of a softmax
        assert shift or parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(("family", "shard"), family_turns(reuse.FAMILIES, ["1GB", "20KB"], one_in=2))
def test_an_attached_model_is_saved_and_loaded(family, shard, tmp_path):
    model, processor = attached(family)
    rows = two_rows(family, marked=True)
    batch = inputs(processor, rows)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    processor.save_pretrained(tmp_path)
    loaded, again = reuse.load(tmp_path)
    assert type(loaded) is type(model) and again.__class__.__name__ == processor.__class__.__name__
    after = inputs(again, rows)
    # before 5.17 transformers may load another backend, which makes other pixels
    same = [k for k in batch if is_at_least("5.17") or k != "pixel_values"]
    assert all(torch.equal(batch[k], after[k]) for k in same)
    with torch.no_grad():
        assert_same(family, loaded(**after).logits, model(**after).logits)
    reuse.detach(loaded, again)
    plain, fresh = make_model(family), make_processor(family)
    assert again.tokenizer.get_vocab() == fresh.tokenizer.get_vocab()
    unmarked = inputs(again, two_rows(family))
    expected = inputs(fresh, two_rows(family))
    assert expected.keys() == unmarked.keys() and all(torch.equal(expected[k], unmarked[k]) for k in same)
    with torch.no_grad():
        assert_same(family, loaded(**unmarked).logits, plain(**unmarked).logits)


@pytest.mark.parametrize("options", [{}, PREFUSION], ids=["embq", "llava_mini"])
@over_families
def test_text_alone_gives_the_parts_gradients_of_zeros(family, options):
    """DistributedDataParallel waits for one of each; nothing else changes."""
    if family == "paligemma":
        pytest.skip("its processor takes no text without an image")
    model, processor = attached(family, **options)
    text = prompt(family, images=0, marked=True)
    batch = dict(processor(text=[text, f"{text} a cat"], padding=True, return_tensors="pt"))
    with torch.no_grad():
        expected = train_loss(model, batch)  # in evaluation nothing is added
    frozen = next(model.slothkit.compressor.parameters()).requires_grad_(False)
    model.train()
    loss = train_loss(model, batch)
    assert torch.equal(loss, expected)
    loss.backward()
    assert frozen.grad is None
    for name, parameter in model.slothkit.named_parameters():
        if parameter is not frozen:
            is_read = name in ("markers.question", "query_module.tokens")
            assert parameter.grad.any() == is_read, name


def test_images_without_a_question_give_the_query_module_gradients_of_zeros():
    model, processor = attached("llava")
    batch = inputs(processor, two_rows("llava", marked=True))
    markers = model.slothkit.markers
    batch["input_ids"] = batch["input_ids"].masked_fill(markers.find_markers(batch["input_ids"]), 30)
    train_loss(model.train(), batch).backward()
    for name, parameter in model.slothkit.named_parameters():
        is_read = not name.startswith(("query_module", "markers"))
        assert parameter.grad.any() == is_read, name


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_variant_has_parts_of_its_own(shard, tmp_path):
    """Beside it in the folder are the weights without a variant, and those of another."""
    model, processor = attached("llava")
    processor.save_pretrained(tmp_path)
    batch = inputs(processor, two_rows("llava", marked=True))
    expected = {}
    for seed, variant in enumerate((None, "ema", "old")):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter.data, std=0.3)
        model.save_pretrained(tmp_path, variant=variant, max_shard_size=shard)
        with torch.no_grad():
            expected[variant] = model(**batch).logits
    for variant, logits in expected.items():
        loaded, _ = reuse.load(tmp_path, variant=variant)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(**batch).logits, logits)


@over_families
def test_lora_beside_the_attached_parts(family, tmp_path):
    model, processor = attached(family)
    untuned = copy.deepcopy(model)
    batch = inputs(processor, two_rows(family, marked=True))
    parts = reuse.name_trained_parts(model)
    assert parts[0] == "slothkit.compressor" and "slothkit.query_module" in parts
    language = model.slothkit.family.language_model
    lora = LoraConfig(r=2, target_modules=rf".*{language}.*q(_b)?_proj", modules_to_save=parts)
    tuned = get_peft_model(model, lora)
    tuned.enable_input_require_grads()
    tuned.gradient_checkpointing_enable()
    before = answers(tuned, batch)
    optimizer = torch.optim.AdamW([p for p in tuned.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = train_loss(tuned, batch)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    moved = {
        name.split(".")[0]
        for name, p in model.slothkit.named_parameters()
        if p.requires_grad and p.grad.abs().sum() > 0
    }
    assert {"compressor", "query_module"} <= moved
    assert losses[-1] < losses[0]
    tuned.eval()
    assert answers(tuned, batch) != before
    tuned.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(untuned, tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, tuned(**batch).logits)


@over_families
def test_copies_are_their_own(family):
    model, processor = attached(family)
    batch = inputs(processor, two_rows(family, marked=True))
    other, again = copy.deepcopy(model), pickle.loads(pickle.dumps(processor))
    after = inputs(again, two_rows(family, marked=True))
    assert all(torch.equal(batch[k], after[k]) for k in batch)
    with torch.no_grad():
        logits = model(**batch).logits
        assert torch.equal(other(**after).logits, logits)
        for parameter in other.slothkit.parameters():
            parameter.data.zero_()
        assert torch.equal(model(**batch).logits, logits)
        assert not torch.equal(other(**batch).logits, logits)


@over_families
def test_an_attached_model_in_half_precision(family):
    model, processor = make_model(family).bfloat16(), make_processor(family)
    reuse.attach(model, processor, **SAP, **EMBQ)
    assert {p.dtype for p in model.slothkit.parameters()} == {torch.bfloat16}
    batch = inputs(processor, two_rows(family, marked=True))
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    train_loss(model, batch).backward()
    assert all(p.grad is not None for p in model.slothkit.parameters())
    assert answers(model, batch)


@pytest.mark.parametrize("family", family_params("llava", "qwen2_vl"))
def test_a_forward_is_one_step_of_its_compressor(family):
    """However many sizes its images have: each is compressed by itself."""
    model, processor = make_model(family), make_processor(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it has to be trained
        reuse.attach(model, processor, "visionselector", width=8, tokens=4)
    batch = inputs(processor, two_rows(family))
    train_loss(model.train(), batch).backward()
    train_loss(model, batch).backward()
    assert model.slothkit.compressor.steps == 2
