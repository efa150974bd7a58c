"""PEFT adapters of models with a compressor attached: what their folders bring back, and what PEFT's copies
of the attached parts do."""

import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reuse_families import (
    SAP,
    attached,
    family_params,
    inputs,
    make_model,
    make_processor,
    picture,
    prompt,
    two_rows,
)

from compressors.errors import UnreachableError, UsageError
from connectors.hub import find_folder
from llm_adapters import reuse
from llm_adapters.reuse import folders

SCALES = {"compressor": "matryoshka", "host": "sap", "knobs": {"rate": 1}, "scales": [1, 2, 3]}
TRAINING_FREE = {"compressor": "visionzip", "tokens": 9}


def save_base(family: str, folder, **options) -> None:
    """A model with a compressor attached, and its processor."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, **options)
    save_both(model, processor, folder)


def test_a_base_of_the_hub_is_loaded_in_the_version_that_it_was_trained_in(tmp_path, monkeypatch):
    """`revision` in the adapter's configuration is the base's, as in PEFT."""
    model, processor = attached("llava")
    tuned = wrap(model)
    tuned.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "someone/base", "revision": "v1"}))
    asked = []

    def find(source, revision=None, **_: object):
        asked.append((source, revision))
        return tmp_path if source == tmp_path else find_folder(source, revision, local_files_only=True)

    monkeypatch.setattr(folders, "find_folder", find)
    with pytest.raises(UnreachableError, match="someone/base"):
        reuse.load(tmp_path)
    assert asked[-1] == ("someone/base", "v1")


def save_adapter(folder, base_name):
    """An adapter of a model with SAP and EmbQ, that names this base."""
    model, processor = attached("llava")
    tuned = wrap_parts(model)
    save_both(tuned, processor, folder)
    path = folder / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "base_model_name_or_path": base_name}))
    return tuned, processor


def test_an_adapter_that_names_no_base_is_loaded_with_one(tmp_path):
    tuned, processor = save_adapter(tmp_path / "adapter", None)
    make_model("llava").save_pretrained(tmp_path / "base")
    loaded, again = reuse.load(tmp_path / "adapter", base=tmp_path / "base")
    batch = inputs(again, two_rows("llava", marked=True))
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, tuned(**batch).logits)


@pytest.mark.parametrize(
    ("base_name", "reason"),
    [
        (None, "names no base_model_name_or_path; write it there"),
        ("/nowhere", "base_model_name_or_path=/nowhere: no such folder; give .*"),
        ("someone/base", "base_model_name_or_path=someone/base: no such folder, and not to be had from .*"),
    ],
)
def test_an_adapter_whose_base_is_nowhere(tmp_path, base_name, reason):
    save_adapter(tmp_path, base_name)
    with pytest.raises(UsageError, match=f"adapter_config.json: {reason}, or give base=FOLDER$") as caught:
        reuse.load(tmp_path, local_files_only=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="^/elsewhere: no such folder"):
        reuse.load(tmp_path, base="/elsewhere")


def test_names_of_trained_parts_need_some():
    with pytest.raises(UsageError, match="name_trained_parts: nothing is attached to this model"):
        reuse.name_trained_parts(make_model("llava"))


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


def load_with_another_compressor(folder, **options):
    """A saved model and its processor, with another compressor in place of the one that was saved."""
    save_base("llava", folder, **TRAINING_FREE)
    model, processor = reuse.load(folder)
    reuse.detach(model, processor)
    reuse.attach(model, processor, **options)
    return model, processor


# without weights, and with weights that the adapter has
@pytest.mark.parametrize("options", [{"compressor": "divprune", "tokens": 7}, SAP])
def test_an_adapter_of_a_compressor_in_place_of_its_bases(tmp_path, options):
    model, processor = load_with_another_compressor(tmp_path / "base", **options)
    tuned = wrap(model, modules_to_save=reuse.name_trained_parts(model) or None)
    save_both(tuned, processor, tmp_path / "adapter")
    assert_loaded_as_trained("llava", tmp_path / "adapter", tuned, processor)


def test_an_adapter_without_weights_of_a_compressor_that_its_base_lacks(tmp_path):
    model, processor = load_with_another_compressor(tmp_path / "base", **SAP)
    save_both(wrap(model), processor, tmp_path / "adapter")
    says = (
        r"no weights of slothkit\.compressor, and its base has others: compressor=visionzip instead of sap; "
        r"knobs=.*; give base="
    )
    with pytest.raises(UsageError, match=says):
        reuse.load(tmp_path / "adapter")


def attach_learned_choice(family: str):
    """With VisionSelector, whose weights choose the patches."""
    model, processor = make_model(family), make_processor(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it has to be trained
        reuse.attach(model, processor, "visionselector", tokens=7, width=8)
    for parameter in model.slothkit.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    return model, processor


def wrap_parts(model) -> PeftModel:
    return wrap(model, modules_to_save=reuse.name_trained_parts(model))


@pytest.mark.parametrize("family", family_params("qwen3_vl", "qwen3_vl_moe"))
def test_deepstack_shares_the_choice_of_a_compressor_that_peft_has_copied(family):
    model, processor = attach_learned_choice(family)
    batch = inputs(processor, two_rows(family))
    pixels = batch["pixel_values"], batch["image_grid_thw"]
    with torch.no_grad():
        before = model.model.get_image_features(*pixels)
        wrap_parts(model)
        after = model.model.get_image_features(*pixels)
    for tokens, expected in zip(after.pooler_output, before.pooler_output):
        assert torch.equal(tokens, expected)
    for level, expected_level in zip(after.deepstack_features, before.deepstack_features):
        for tokens, expected in zip(level, expected_level):
            torch.testing.assert_close(tokens, expected)


def test_a_compressor_that_peft_has_copied_chooses_once(monkeypatch):
    """A choice that is drawn in training would be another the second time."""
    model, processor = attach_learned_choice("qwen3_vl")
    kind = type(model.slothkit.compressor)
    choices = []
    kept = kind.kept

    def note_choice(*args):
        choices.append(kept(*args))
        return choices[-1]

    monkeypatch.setattr(kind, "kept", note_choice)
    tuned = wrap_parts(model)
    with torch.no_grad():
        tuned(**inputs(processor, [(prompt("qwen3_vl"), [picture()])]))
    assert len(choices) == 1


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl"))
def test_detach_from_a_model_that_peft_has_wrapped(family):
    """LoRA in the LLM alone stays there."""
    model, processor = attached(family)
    tuned = wrap(model)
    reuse.detach(tuned, processor)
    plain = make_model(family)
    language = reuse.FAMILIES[family].language_model
    lora = LoraConfig(r=2, target_modules=rf".*{language}.*q_proj", init_lora_weights=False)
    expected = get_peft_model(plain, lora).eval()
    expected.load_state_dict(tuned.state_dict())
    batch = inputs(make_processor(family), two_rows(family))
    assert inputs(processor, two_rows(family)).keys() == batch.keys()
    with torch.no_grad():
        assert torch.equal(tuned(**batch).logits, expected(**batch).logits)


@pytest.mark.parametrize("targets", ["whole", "layers"])
def test_detach_of_parts_that_an_adapter_trains(targets):
    model, processor = attached("llava")
    if targets == "whole":
        tuned = wrap_parts(model)
    else:
        tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).eval()
    batch = inputs(processor, two_rows("llava", marked=True))
    with torch.no_grad():
        before = tuned(**batch).logits
        for given in (tuned, model):
            with pytest.raises(
                UsageError, match=r"trains slothkit\.compressor, .*unload\(\) or merge_and_unl"
            ):
                reuse.detach(given, processor)
        assert torch.equal(tuned(**batch).logits, before)
        assert inputs(processor, two_rows("llava", marked=True)).keys() == batch.keys()
        unloaded = tuned.unload()
        reuse.detach(unloaded, processor)
        batch = inputs(processor, two_rows("llava"))
        assert torch.equal(unloaded(**batch).logits, make_model("llava")(**batch).logits)


def test_pick_a_scale_of_a_compressor_that_peft_has_copied():
    """In every adapter, without one, and in those that are added later."""
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, **SCALES)
    tuned = wrap_parts(model)
    tuned.add_adapter("second", tuned.peft_config["default"])
    with pytest.raises(UsageError, match="scale=4: choose one of 1, 2, 3"):
        reuse.pick(tuned, processor, 4)
    reuse.pick(tuned, processor, 2)
    tuned.add_adapter("third", tuned.peft_config["default"])
    batch = inputs(processor, two_rows("llava"))
    with torch.no_grad():
        for adapter in ("default", "second", "third"):
            tuned.set_adapter(adapter)
            assert tuned(**batch).logits.isfinite().all()
        with tuned.disable_adapter():
            assert tuned(**batch).logits.isfinite().all()
    assert model.config.slothkit["scale"] == 2
    assert tuned.unload().slothkit.compressor.scale == 2


@pytest.mark.parametrize(
    "refused", [{"target_modules": ["q_proj", "embed_tokens"]}, {"trainable_token_indices": [5]}], ids=str
)
def test_embeddings_without_rows_for_query_tokens(refused):
    """What PEFT trains of them, it looks up by ids; whole, or not at all, it may train them."""
    model, processor = attached("llava")
    batch = inputs(processor, two_rows("llava", marked=True))
    with torch.no_grad():
        expected = model(**batch).logits
    options = {"target_modules": ["q_proj"]}
    names = reuse.name_trained_parts(model)
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**{**options, **refused}, modules_to_save=names))
    with pytest.raises(
        UsageError, match="no rows in the embeddings .* name them in modules_to_save"
    ) as caught:
        tuned(**batch)
    assert "\n" not in str(caught.value)
    for more in ([], ["embed_tokens"]):
        tuned = get_peft_model(copy.deepcopy(model), LoraConfig(**options, modules_to_save=names + more))
        with torch.no_grad():
            assert torch.equal(tuned(**batch).logits, expected)
    model.resize_token_embeddings(2000)
    tuned = get_peft_model(model, LoraConfig(target_modules=["embed_tokens"], modules_to_save=names))
    with torch.no_grad():
        torch.testing.assert_close(tuned(**batch).logits[..., :320], expected)
