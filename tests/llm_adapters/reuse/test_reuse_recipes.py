"""Training a model with a compressor attached by what people use: transformers' Trainer and PEFT's LoRA."""

import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from reuse_families import (
    EMBQ,
    SAP,
    assert_same,
    attached,
    family_params,
    inputs,
    make_model,
    make_processor,
    picture,
    prompt,
    train_loss,
    two_rows,
)
from transformers import Trainer, TrainingArguments

from compressors.errors import UsageError
from llm_adapters import reuse

over_recipe_families = pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl", "qwen3_vl"))
SAMPLES = [{"question": "What is this?", "answer": "a cat", "picture": seed} for seed in range(4)]


def make_collator(family, processor):
    """Samples to a batch: what is asked is no label."""

    def collate(samples):
        rows = []
        for sample in samples:
            text = f"{prompt(family, sample['question'], marked=True)} {sample['answer']}"
            rows.append((text, [picture(sample["picture"])]))
        batch = inputs(processor, rows)
        answer_length = len(processor.tokenizer(f" {SAMPLES[0]['answer']}")["input_ids"])
        labels = torch.full_like(batch["input_ids"], -100)
        labels[:, -answer_length:] = batch["input_ids"][:, -answer_length:]  # padded on the left
        return {**batch, "labels": labels}

    return collate


def make_trainer(family, model, processor, folder, **options):
    settings = {
        "per_device_train_batch_size": 2,
        "max_steps": 2,
        "save_steps": 1,
        "learning_rate": 0.01,
        "report_to": [],
        "remove_unused_columns": False,  # the collator makes the model's own
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=SAMPLES,
        data_collator=make_collator(family, processor),
        processing_class=processor,
    )


def wrap(model, **options):
    language = model.slothkit.family.language_model
    return get_peft_model(model, LoraConfig(r=2, target_modules=rf".*{language}.*q_proj", **options))


@over_recipe_families
def test_trainer_trains_the_model_and_resumes(family, tmp_path):
    model, processor = attached(family)
    before = {name: parameter.clone() for name, parameter in model.slothkit.named_parameters()}
    make_trainer(family, model, processor, tmp_path).train()
    moved = [
        name for name, parameter in model.slothkit.named_parameters() if (parameter != before[name]).any()
    ]
    assert {name.split(".")[0] for name in moved} >= {"compressor", "query_module"}
    loaded, again = reuse.load(tmp_path / "checkpoint-2")
    batch = inputs(again, two_rows(family, marked=True))
    with torch.no_grad():
        assert_same(family, loaded.eval()(**batch).logits, model.eval()(**batch).logits)
    fresh, same = attached(family, seed=1)
    trainer = make_trainer(family, fresh, same, tmp_path, max_steps=2)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    # its own resuming leaves out weights that transformers saves under older names; the parts have none
    for name, parameter in fresh.slothkit.named_parameters():
        assert torch.equal(parameter, model.slothkit.get_parameter(name)), name


@pytest.mark.parametrize("masked", [False, True])
def test_markers_among_labels_are_told(masked, tmp_path):
    """Trainer counts them, over both batches of a step; without them its loss is the mean of all labels."""
    model, processor = attached("llava")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    markers = processor.tokenizer.convert_tokens_to_ids(["<question>", "<query>"])
    collate_answers = make_collator("llava", processor)
    batches = []

    def collate(samples):
        batch = collate_answers(samples)
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        batch["labels"][:, 0] = -100  # which nothing predicts; older trainers count it
        if masked:
            batch["labels"][torch.isin(batch["labels"], torch.tensor(markers))] = -100
        batches.append(batch)
        return dict(batch)

    options = {"max_steps": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.0, "logging_steps": 1}
    trainer = make_trainer("llava", model, processor, tmp_path, save_strategy="no", **options)
    trainer.data_collator = collate
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    told = [str(warning.message) for warning in caught if "num_items_in_batch" in str(warning.message)]
    learned = 0
    total = 0.0
    model.eval()
    for batch in batches[:2]:
        labels = batch["labels"][:, 1:]
        count = ((labels != -100) & ~torch.isin(labels, torch.tensor(markers))).sum().item()
        with torch.no_grad():
            total += model(**batch).loss.item() * count
        learned += count
    loss = trainer.state.log_history[0]["loss"]
    if masked:
        assert not told
        assert loss == pytest.approx(total / learned, rel=1e-3)
        return
    labels = batches[0]["labels"]
    counted = torch.isin(labels, torch.tensor(markers)).sum().item()
    assert len(told) == 1 and "\n" not in told[0]
    assert told[0].startswith(f"{counted} of {(labels != -100).sum().item()} labels")
    assert str(markers[0]) in told[0] and str(markers[1]) in told[0]
    assert loss < 0.95 * total / learned


@over_recipe_families
def test_trainer_trains_lora_and_the_attached_parts(family, tmp_path):
    """The plain model, a compressor put into it, an adapter: the adapter's folder alone brings all back."""
    plain = tmp_path / "plain"
    made = make_model(family)
    made.save_pretrained(plain)
    model, processor = type(made).from_pretrained(plain).eval(), make_processor(family)
    reuse.attach(model, processor, **SAP, **EMBQ)
    tuned = wrap(model, modules_to_save=reuse.name_trained_parts(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("default", message="(?!slothkit).*")
        make_trainer(family, tuned, processor, tmp_path).train()
    folder = tmp_path / "checkpoint-2"
    loaded, again = reuse.load(folder)
    assert isinstance(loaded, PeftModel)
    batch = inputs(again, two_rows(family, marked=True))
    with torch.no_grad():
        assert_same(family, loaded.eval()(**batch).logits, tuned.eval()(**batch).logits)


def test_an_adapter_of_a_saved_attached_model(tmp_path):
    """Its parts come from there, where the adapter has none."""
    made, processor = attached("llava")
    made.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, processor = reuse.load(tmp_path / "base")
    tuned = wrap(model, init_lora_weights=False)
    tuned.save_pretrained(tmp_path / "adapter")
    batch = inputs(processor, two_rows("llava", marked=True))
    for options in ({}, {"base": tmp_path / "base"}):
        loaded, _ = reuse.load(tmp_path / "adapter", **options)
        with torch.no_grad():
            assert torch.equal(loaded.eval()(**batch).logits, tuned.eval()(**batch).logits)


def test_parts_that_an_adapter_leaves_out_are_told(tmp_path):
    make_model("llava").save_pretrained(tmp_path / "plain")
    model = type(make_model("llava")).from_pretrained(tmp_path / "plain")
    processor = make_processor("llava")
    reuse.attach(model, processor, **SAP, **EMBQ)
    tuned = wrap(model).train()
    batch = inputs(processor, two_rows("llava", marked=True))
    says = (
        r"slothkit\.compressor, .*neither trained .* nor saved .* modules_to_save=reuse\.name_trained_parts"
    )
    with pytest.warns(UserWarning, match=says):
        train_loss(tuned, batch)
    with warnings.catch_warnings():  # once
        warnings.simplefilter("error")
        train_loss(tuned, batch)
    tuned.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match="an adapter of a plain model, without what was attached to it"):
        reuse.load(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UsageError, match=r"has no weights of slothkit\.compressor, .*; give base="):
        reuse.load(tmp_path / "adapter")


def test_parts_with_layers_of_lora_in_them_are_told_too():
    """All linear layers may be among them: their own random weights would not be saved."""
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, **SAP, **EMBQ)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear")).train()
    assert any("lora_" in name for name, _ in model.slothkit.named_parameters())
    batch = inputs(processor, two_rows("llava", marked=True))
    with pytest.warns(UserWarning, match=r"slothkit\.query_module.*neither trained .* nor saved"):
        train_loss(tuned, batch)
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, **SAP, **EMBQ)
    names = reuse.name_trained_parts(model)
    lora = LoraConfig(r=2, target_modules="all-linear", modules_to_save=names)
    saved_whole = get_peft_model(model, lora).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_loss(saved_whole, batch)
