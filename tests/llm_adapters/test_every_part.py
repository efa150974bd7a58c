"""Every compressor and every query module: built, trained, saved, loaded, asked. EmbQ or none, and three LLM
families, take turns."""

import pytest
import small_runs
import torch
from factories import LLMS, make_batch, make_model, make_processor, picture
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText
from turns import take_turns

import compressors
from connectors.query_module import registry as query_modules
from experiments.stages.train import prepare_model
from experiments.stages.training.module import set_trainable
from llm_adapters.conversation import IMAGE, Template, Turn

STAGES = {  # what each trains, the tower aside; FlashSloth, section 4
    "pretrain": {"compressor", "projector"},
    "finetune": {"compressor", "projector", "query_module", "language_model"},
}
ROWS = [
    (
        [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"And {IMAGE} that?", "The cat")],
        [picture(1), picture(2)],
    ),
    ([Turn("Hi", "no")], []),
    ([Turn(f"{IMAGE}\nWhat is that?", "red")], [picture(3)]),
]


def no_effect(name: str) -> bool:
    """Parameters that shift all logits of a softmax alike: their gradient is zero but for rounding."""
    return name.endswith("scorer.3.bias") or ("query_module" in name and name.endswith("k_proj.bias"))


def train(model: nn.Module, stage: str, batch: dict[str, Tensor], train_tower: bool = False) -> None:
    """Two AdamW steps. What the stage trains has gradients and moves; nothing else has or does."""
    set_trainable(model, stage, train_tower)
    parts = STAGES[stage] | ({"vision_tower"} if train_tower and stage == "finetune" else set())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    for _ in range(2):
        optimizer.zero_grad()
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        assert loss.isfinite()
        for name, p in model.named_parameters():
            trained = name.split(".")[0] in parts
            assert (p.grad is not None) == p.requires_grad == trained, name
            assert not trained or no_effect(name) or p.grad.abs().sum() > 0, name
        optimizer.step()
    for name, p in model.named_parameters():
        trained = name.split(".")[0] in parts
        assert torch.equal(p, before[name]) != trained or no_effect(name), name


PAIRS = take_turns(compressors.names(), (None, "embq"), one_in=2, always=["sap"])
# behind compressors with and without weights, one of several token counts, and one that reads the question
PAIRS += [
    (name, query_module)
    for name in ("sap", "resampler_2d", "random", "matryoshka", "quecc")
    for query_module in query_modules.names()
    if query_module != "embq"
]


TURNS = take_turns(PAIRS, LLMS, one_in=3, always=[("sap", "embq"), ("sap", "llava_mini")])


@pytest.mark.parametrize(("compressor", "query_module", "llm"), [(*pair, llm) for pair, llm in TURNS])
def test_build_train_save_load_generate(compressor, query_module, llm, tmp_path):
    model = make_model(llm, compressor, query_module, prompt=Template(system=""))
    processor = make_processor(model)
    batch = make_batch(processor, ROWS, "right")
    assert (batch["input_ids"] == processor.image_token_id).sum() == 3 * model.num_image_tokens()
    if not any(True for part in (model.compressor, model.projector) for _ in part.parameters()):
        pytest.fail(f"{compressor}: stage 1 would train nothing")
    model.train()
    for stage in STAGES:
        train(model, stage, batch)
    model.eval().save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(loaded) is type(model) and not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    asked = [([*turns[:-1], Turn(turns[-1].question)], images) for turns, images in ROWS]
    prompts = make_batch(processor, asked)
    del prompts["labels"]
    said = [m.generate(**prompts, max_new_tokens=3, do_sample=False) for m in (model, loaded)]
    assert torch.equal(*said) and said[0].shape[1] > prompts["input_ids"].shape[1]


@pytest.mark.parametrize("stage", STAGES)
def test_tower_trains_when_told(stage):
    """The released HD code marks the tower trainable but runs it without gradients."""
    model = make_model(prompt=Template(system="")).train()
    batch = make_batch(make_processor(model), ROWS)
    train(model, stage, batch, train_tower=True)
    assert model.vision_tower.frozen == (stage == "pretrain")


def test_token_embeddings_train_in_stage_2():
    """The model looks embeddings up itself: rows of tokens that occur have gradients, placeholders' not."""
    model = make_model(prompt=Template(system="")).train()
    batch = make_batch(make_processor(model), ROWS)
    set_trainable(model, "finetune")
    model(**batch, use_cache=False).loss.backward()
    gradient = model.get_input_embeddings().weight.grad.abs().sum(1) > 0
    ids = batch["input_ids"][batch["attention_mask"].bool()].unique().tolist()
    placeholders = {model.config.image_token_id, model.config.query_token_id}
    assert set(gradient.nonzero().flatten().tolist()) <= set(ids) - placeholders
    assert gradient.sum() > 10


def test_second_stage_starts_from_the_first_ones_weights(tmp_path):
    """The released code initialises SAP again when stage 2 starts."""
    small_runs.write_backbones(tmp_path)
    small_runs.write_data(tmp_path, 8)
    config = small_runs.make_config(tmp_path)
    trained = small_runs.run("pretrain", config, {}, tmp_path / "out")
    model, _ = prepare_model(config, "finetune", {"pretrain": tmp_path / "out"})
    found = model.state_dict()
    assert {name.split(".")[0] for name in trained} == STAGES["pretrain"]
    for name, value in trained.items():
        assert torch.equal(found[name], value), name
