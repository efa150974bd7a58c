"""The composed model in what people train with: TRL's SFTTrainer, QLoRA, accelerate by itself."""

import copy
from collections.abc import Sequence
from functools import partial

import pytest
import torch
import torch.distributed as dist
from factories import TOKENIZERS, make_model, make_processor, picture, vision_config
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from compressors.errors import UsageError
from llm_adapters.auto import FlashSlothForConditionalGeneration, FlashSlothProcessor

PARTS = ["compressor", "projector", "query_module"]
QUESTIONS = ("What is this?", "And that, is it a cat or a dog?")
ANSWERS = ("a cat", "no, a red one")


def make_conversation(number: int, image: object = None) -> list[dict]:
    """A question about a picture and its answer; then, of the second, a question without."""
    parts = [
        {"type": "image", "image": image or picture(number)},
        {"type": "text", "text": QUESTIONS[number]},
    ]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": ANSWERS[number]}]
    if number:
        messages += [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "yes"}]
    return messages


def collate(processor: FlashSlothProcessor, conversations: list[list[dict]], **options) -> dict:
    """What a `data_collator` or `collate_fn` is: whole conversations to a batch with labels."""
    return processor.apply_chat_template(
        conversations, tokenize=True, return_dict=True, processor_kwargs={"return_labels": True, **options}
    )


def read_answers(processor: FlashSlothProcessor, batch: dict) -> list[str]:
    """What is learned of each row."""
    answers = []
    for ids, labels in zip(batch["input_ids"], batch["labels"]):
        assert torch.equal(ids[labels != -100], labels[labels != -100])
        answers.append(processor.tokenizer.decode(labels[labels != -100]))
    return answers


@pytest.mark.parametrize("query_module", [None, "embq", "llava_mini"])
def test_text_alone_gives_visual_parts_gradients_of_zeros(query_module):
    """DistributedDataParallel waits for one of each; nothing else changes. A frozen part stays without."""
    model = make_model("llama", "sap", query_module)
    ids = torch.arange(20, 28).view(2, 4)
    assert model.config.query_token_id not in ids and model.config.image_token_id not in ids
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    expected = model(**batch).loss
    model.train()
    model.vision_tower.requires_grad_(False)
    loss = model(**batch).loss
    assert torch.equal(loss, expected)
    loss.backward()
    for name in [part for part in PARTS if getattr(model, part) is not None]:
        for parameter in getattr(model, name).parameters():
            assert parameter.grad is not None and not parameter.grad.any(), name
    assert all(parameter.grad is None for parameter in model.vision_tower.parameters())
    model.zero_grad()
    model.language_model.requires_grad_(False)  # stage 1: then nothing else has a gradient
    model(**batch).loss.backward()


def test_text_alone_trains_a_model_whose_layers_are_sharded(tmp_path):
    """The tower, too; FSDP2 gathers what a batch reads, and the rest of it is no plain tensor."""
    model = make_model("llama", "sap", "embq").train()
    ids = torch.arange(20, 28).view(2, 4)
    expected = model(input_ids=ids, labels=ids).loss
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for layer in [*model.vision_tower.blocks, *model.language_model.model.layers]:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert torch.equal(loss, expected)
        assert all(parameter.grad is not None for parameter in model.query_module.parameters())
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_processor_keeps_labels_of_answers(model, tokenizer, side):
    processor = make_processor(model, TOKENIZERS[tokenizer]())
    conversations = [make_conversation(0), make_conversation(1)]
    batch = collate(processor, conversations, padding_side=side)
    # the tokenizer of words loses spaces
    expected = [f"{ANSWERS[0]}</s>", f"{ANSWERS[1]}</s>yes</s>"]
    found = read_answers(processor, batch)
    assert [text.replace(" ", "") for text in found] == [text.replace(" ", "") for text in expected]
    masked = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding_side": side},
    )
    assert torch.equal(masked["assistant_masks"], (batch["labels"] != -100).long())
    assert torch.equal(masked["input_ids"], batch["input_ids"])
    assert "labels" not in masked and "assistant_masks" not in batch
    plain = processor.apply_chat_template(conversations, tokenize=True, return_dict=True)
    assert "labels" not in plain and "assistant_masks" not in plain
    with torch.no_grad():
        assert model(**batch).loss.isfinite()


def test_the_template_says_what_is_generated(model):
    """As transformers reads it, by characters, where no image is in the way."""
    processor = make_processor(model)
    messages = [{"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "yes"}]
    out = processor.tokenizer.apply_chat_template(
        messages,
        chat_template=processor.chat_template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    generated = [token for token, mask in zip(out["input_ids"], out["assistant_masks"]) if mask]
    assert processor.tokenizer.decode(generated).strip() == "yes</s>"


def test_the_base_model_gives_the_heads_input(model):
    batch = collate(make_processor(model), [make_conversation(0), make_conversation(1)])
    labels = batch.pop("labels")
    with torch.no_grad():
        hidden = model.base_model(**batch).last_hidden_state
        expected = model(**batch)
        torch.testing.assert_close(model.get_output_embeddings()(hidden), expected.logits)
        assert model(**batch, labels=labels).loss.isfinite()
    assert model.base_model.config is model.config
    assert not hasattr(model.base_model, "get_encoder")
    assert model.get_decoder() is not None and model.get_encoder() is not None


def make_dataset():
    """Two conversations as data sets of TRL have them: images beside the messages."""
    datasets = pytest.importorskip("datasets")
    rows = {"images": [], "messages": []}
    for number in (0, 1, 0, 1):
        messages = []
        for message in make_conversation(number):
            content = message["content"]
            if isinstance(content, list):
                content = QUESTIONS[number]
            messages.append({**message, "content": content})
        rows["images"].append([picture(number)])
        rows["messages"].append(messages)
    return datasets.Dataset.from_dict(rows)


def make_sft_settings(folder, **options) -> dict:
    trl = pytest.importorskip("trl")
    return trl.SFTConfig(
        str(folder),
        **{
            "max_length": None,
            "assistant_only_loss": True,
            "per_device_train_batch_size": 2,
            "max_steps": 2,
            "learning_rate": 0.01,
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "bf16": False,
            **options,
        },
    )


def test_sft_trainer(tmp_path):
    """The loss is the model's own, it goes down, and what is saved is the model."""
    trl = pytest.importorskip("trl")
    model = make_model()
    processor = make_processor(model)
    before = copy.deepcopy(model.state_dict())
    trainer = trl.SFTTrainer(
        model=model,
        args=make_sft_settings(tmp_path, logging_steps=1, num_train_epochs=1),
        train_dataset=make_dataset(),
        processing_class=processor,
    )
    batch = collate(processor, [make_conversation(0), make_conversation(1)])
    with torch.no_grad():  # in eval mode: phi has dropout
        own_loss = model(**batch).loss
        torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), own_loss)
    trainer.train()
    moved = {
        name.split(".")[0] for name, value in model.state_dict().items() if (value != before[name]).any()
    }
    assert moved >= {*PARTS, "language_model"}
    trainer.save_model(str(tmp_path / "saved"))
    loaded = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    again = FlashSlothProcessor.from_pretrained(tmp_path / "saved")
    batch = collate(again, [make_conversation(0)])
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, model.eval()(**batch).loss)


def test_sft_trainer_cuts_nothing_and_takes_whole_conversations(tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    model = make_model()
    options = {"model": model, "processing_class": make_processor(model)}
    trainer = trl.SFTTrainer(
        args=make_sft_settings(tmp_path, max_length=512), train_dataset=make_dataset(), **options
    )
    with pytest.raises(UsageError, match=r"takes no truncation, max_length; .*max_length=None"):
        trainer.train()
    pair = {
        "images": [[picture(0)]],
        "prompt": [[{"role": "user", "content": QUESTIONS[0]}]],
        "completion": [[{"role": "assistant", "content": ANSWERS[0]}]],
    }
    settings = make_sft_settings(tmp_path, assistant_only_loss=False, per_device_train_batch_size=1)
    trainer = trl.SFTTrainer(args=settings, train_dataset=datasets.Dataset.from_dict(pair), **options)
    with pytest.raises(UsageError, match="give whole conversations"):
        trainer.train()


@pytest.fixture
def saved_model(tmp_path):
    """The folder of a model, as one would get it; as wide as a block of weights in 4 bits."""
    wide = {"hidden_size": 64, "intermediate_size": 64}
    model = make_model(llm_changes=wide, vision=vision_config(**wide))
    model.save_pretrained(tmp_path / "plain")
    make_processor(model).save_pretrained(tmp_path / "plain")
    return tmp_path / "plain"


def load_in_4bit(
    folder, whole: Sequence[str] = ("vision_tower", *PARTS, "lm_head")
) -> FlashSlothForConditionalGeneration:
    """The LLM's layers in 4 bits; what is trained stays as it is, and the tower that it reads."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=list(whole),
    )
    return FlashSlothForConditionalGeneration.from_pretrained(folder, quantization_config=settings)


def test_a_projector_in_4_bits(saved_model):
    """Its weights are packed in integers; features are none."""
    model = load_in_4bit(saved_model, ["vision_tower", "compressor", "query_module", "lm_head"])
    assert not next(model.projector.parameters()).is_floating_point()
    batch = collate(FlashSlothProcessor.from_pretrained(saved_model), [make_conversation(0)])
    with torch.no_grad():
        assert model.eval()(**batch).loss.isfinite()


def test_qlora(saved_model, tmp_path):
    peft = pytest.importorskip("peft")
    model = load_in_4bit(saved_model)
    processor = FlashSlothProcessor.from_pretrained(saved_model)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    quantised = [name for name, kind in kinds.items() if kind == "Linear4bit"]
    assert quantised and all(name.startswith("language_model.") for name in quantised)
    model = peft.prepare_model_for_kbit_training(model)
    lora = peft.LoraConfig(r=2, target_modules=r"language_model.*q_proj", modules_to_save=PARTS)
    tuned = peft.get_peft_model(model, lora)
    batch = collate(processor, [make_conversation(0), make_conversation(1)])
    losses = train_steps(tuned, batch, 4)
    assert losses[-1] < losses[0]
    tuned.eval().save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(load_in_4bit(saved_model), tmp_path / "adapter").eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).loss, tuned(**batch).loss)


def train_steps(model: torch.nn.Module, batch: dict, steps: int) -> list[float]:
    """Losses of AdamW's first steps."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.01)
    losses = []
    for _ in range(steps):
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_by_itself(tmp_path, precision):
    """A loop of one's own, gone on with from what `save_state` has written."""
    accelerate = pytest.importorskip("accelerate")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)  # a process has one
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision)
    model = make_model()
    processor = make_processor(model)
    conversations = [make_conversation(number) for number in (0, 1, 0, 1)]
    batches = DataLoader(conversations, batch_size=2, collate_fn=partial(collate, processor))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model, optimizer, batches = accelerator.prepare(model, optimizer, batches)

    def train_epoch() -> list[float]:
        losses = []
        for batch in batches:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    first = train_epoch()
    accelerator.save_state(str(tmp_path / "state"))
    second = train_epoch()
    accelerator.load_state(str(tmp_path / "state"))
    assert train_epoch() == second
    assert sum(second) < sum(first)
    accelerator.unwrap_model(model).save_pretrained(tmp_path / "model")
    loaded = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "model")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, accelerator.unwrap_model(model).state_dict()[name]), name
