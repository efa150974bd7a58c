"""Models with a compressor attached in TRL's SFTTrainer, with QLoRA, and with accelerate by itself."""

import pytest
import torch
from reuse_families import (
    EMBQ,
    SAP,
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
from reuse_models import make_settings
from tiny_tokenizer import CHAT
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForImageTextToText

from connectors.versions import is_at_least
from llm_adapters import reuse

over_recipe_families = pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl", "gemma3"))
# as a model's own template says which words are the model's
SAYS_GENERATED = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE"
    "{% elif m['role'] == 'assistant' %}{% generation %}{{ p['text'] }}</s>{% endgeneration %}"
    "{% else %}{{ p['text'] }}{% endif %}{% endfor %}\n{% endfor %}"
)
QUESTIONS = ("What is this?", "And that, is it a cat or a dog?")
ANSWERS = ("a cat", "a dog")


def use_training_template(processor) -> None:
    """The processor's template, with its assistant's words marked."""
    before, _ = CHAT.split("IMAGE")
    image = processor.chat_template.removeprefix(before).partition("{%")[0]
    processor.chat_template = SAYS_GENERATED.replace("IMAGE", image)


def make_messages(number: int, image: object) -> list[dict]:
    question = [{"type": "image", "image": image}, {"type": "text", "text": QUESTIONS[number]}]
    answer = [{"type": "text", "text": ANSWERS[number]}]
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


# PaliGemma's processor puts words of its own before the text, and is as far off without a compressor
@pytest.mark.skipif(not is_at_least("5.18"), reason="before, transformers loses answers behind images")
@pytest.mark.parametrize("family", family_params(*(name for name in reuse.FAMILIES if name != "paligemma")))
def test_answers_are_found_behind_visual_and_query_tokens(family):
    model, processor = attached(family)
    use_training_template(processor)
    batch = processor.apply_chat_template(
        [make_messages(0, picture(1)), make_messages(1, picture(2, 40, 24))],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True},
    )
    masks = batch.pop("assistant_masks")
    answers = [
        processor.tokenizer.decode(ids[mask == 1]).strip() for ids, mask in zip(batch["input_ids"], masks)
    ]
    assert answers == [f"{answer}</s>" for answer in ANSWERS]
    queries = batch["input_ids"] == model.slothkit.markers.query_id
    assert queries.sum() == 2 * EMBQ["query_knobs"]["num_queries"]
    labels = batch["input_ids"].masked_fill(masks == 0, -100)
    assert model(**batch, labels=labels).loss.isfinite()


def make_dataset():
    """Conversations as data sets of TRL have them: images beside the messages."""
    datasets = pytest.importorskip("datasets")
    rows: dict[str, list] = {"images": [], "messages": []}
    for number in (0, 1, 0, 1):
        rows["images"].append([picture(number)])
        question = {"role": "user", "content": QUESTIONS[number]}
        rows["messages"].append([question, {"role": "assistant", "content": ANSWERS[number]}])
    return datasets.Dataset.from_dict(rows)


@pytest.mark.skipif(not is_at_least("5.18"), reason="TRL: answers alone from 5.18 on")
@over_recipe_families
def test_sft_trainer_with_lora(family, tmp_path):
    """Its loss is the model's own; the adapter's folder brings back what was trained."""
    trl = pytest.importorskip("trl")
    peft = pytest.importorskip("peft")
    plain = tmp_path / "plain"
    made = make_model(family)
    made.save_pretrained(plain)
    model, processor = type(made).from_pretrained(plain).eval(), make_processor(family)
    use_training_template(processor)
    reuse.attach(model, processor, **SAP, **EMBQ)
    language = model.slothkit.family.language_model
    parts = reuse.name_trained_parts(model)
    trainer = trl.SFTTrainer(
        model=model,
        args=trl.SFTConfig(
            str(tmp_path / "run"),
            max_length=None,
            assistant_only_loss=True,
            per_device_train_batch_size=2,
            max_steps=2,
            learning_rate=0.01,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=make_dataset(),
        processing_class=processor,
        peft_config=peft.LoraConfig(r=2, target_modules=rf".*{language}.*q_proj", modules_to_save=parts),
    )
    batch = trainer.data_collator([make_dataset()[number] for number in (0, 1)])
    with torch.no_grad():
        own_loss = trainer.model(**batch).loss
        torch.testing.assert_close(trainer.compute_loss(trainer.model, dict(batch)), own_loss)
    before = {name: value.clone() for name, value in model.slothkit.named_parameters()}
    trainer.train()
    moved = {
        name.split(".")[0]
        for name, value in model.slothkit.named_parameters()
        if (value != before[name]).any()
    }
    assert {"compressor", "query_module"} <= moved
    loaded, again = reuse.load(tmp_path / "run" / "checkpoint-2")
    batch = inputs(again, two_rows(family, marked=True))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, trainer.model.eval()(**batch).logits)


def save_wide_model(family: str, folder) -> None:
    """A plain model that is as wide as a block of weights in 4 bits, and its processor."""
    settings = make_settings(family)
    settings["text_config"] = {
        **settings["text_config"],
        "hidden_size": 64,
        "intermediate_size": 64,
        "head_dim": 16,
    }
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **settings)).save_pretrained(folder)


def load_in_4bit(folder):
    """The LLM's layers in 4 bits; the tower stays as it is, and so does its projector."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    vision = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=vision)
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=settings), settings


@pytest.mark.parametrize("family", family_params("llava", "gemma3"))
def test_qlora(family, tmp_path):
    peft = pytest.importorskip("peft")
    save_wide_model(family, tmp_path / "plain")
    model, settings = load_in_4bit(tmp_path / "plain")
    processor = make_processor(family)
    reuse.attach(model, processor, **SAP, **EMBQ)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    quantised = [name for name, kind in kinds.items() if kind == "Linear4bit"]
    assert quantised and all(".language_model." in name for name in quantised)
    model = peft.prepare_model_for_kbit_training(model)
    language = model.slothkit.family.language_model
    parts = reuse.name_trained_parts(model)
    lora = peft.LoraConfig(r=2, target_modules=rf".*{language}.*q_proj", modules_to_save=parts)
    tuned = peft.get_peft_model(model, lora).train()
    batch = inputs(processor, two_rows(family, marked=True))
    weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.01)
    losses = []
    for _ in range(4):
        loss = train_loss(tuned, batch)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    tuned.eval().save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    loaded, again = reuse.load(tmp_path / "adapter", quantization_config=settings)
    batch = inputs(again, two_rows(family, marked=True))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, tuned(**batch).logits)


@over_recipe_families
def test_accelerate_by_itself(family, tmp_path):
    """A loop of one's own: what it trains is saved, and `load_state` goes on from a checkpoint."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a process has one
    accelerator = accelerate.Accelerator(cpu=True)
    model, processor = attached(family)

    def collate(rows: list) -> dict:
        batch = inputs(processor, rows)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    rows = [*two_rows(family, marked=True), (prompt(family, marked=True), [picture(3)])]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    batches = DataLoader(rows, batch_size=2, collate_fn=collate)
    model, optimizer, batches = accelerator.prepare(model.train(), optimizer, batches)

    def train_epoch() -> list[float]:
        losses = []
        for batch in batches:
            loss = model(**batch).loss
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    first = train_epoch()
    accelerator.save_state(str(tmp_path / "state"))
    second = train_epoch()
    accelerator.load_state(str(tmp_path / "state"))
    assert train_epoch() == pytest.approx(second)
    assert sum(second) < sum(first)
    trained = accelerator.unwrap_model(model)
    trained.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded, again = reuse.load(tmp_path / "model")
    batch = inputs(again, two_rows(family, marked=True))
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(**batch).logits, trained.eval()(**batch).logits)
