"""One test for each fault of the released code, in the order of our list of them: ours does not have it."""

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from factories import byte_tokenizer, make_batch, make_model, make_processor, picture, vision_config
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForImageTextToText, SiglipVisionModel

import compressors
from compressors.errors import UsageError
from connectors.towers.build import build_tower
from connectors.versions import find_vision_parts
from experiments.config.schema import Config
from experiments.runtime.progress import Reporter
from experiments.stages import train as training
from experiments.stages.training.module import set_trainable
from llm_adapters.conversation import IGNORE, IMAGE, QUERY, Template, Turn

ASK = ([Turn(f"{IMAGE}\nWhat is this?", "A dog.")], [picture(1)])
TEXT = ([Turn("Hi", "no")], [])
TWO_IMAGES = (
    [Turn("Hi", "no"), Turn(f"{IMAGE}{IMAGE}What is this?", "A dog."), Turn("And that?", "red")],
    [picture(2), picture(3)],
)


def prompt(row: tuple) -> tuple:
    """A row whose last answer is to be generated."""
    turns, images = row
    return [*turns[:-1], Turn(turns[-1].question)], images


def inference(model, rows: list[tuple], **kwargs) -> dict[str, torch.Tensor]:
    batch = make_batch(make_processor(model, **kwargs), [prompt(row) for row in rows])
    del batch["labels"]
    return batch


def read_by_slots(model, batch, run) -> list[list[tuple[str, int]]]:
    """Of each row and each turn's queries: the text of the question that they read, and how many images."""
    seen = []

    def spy(module, given):  # noqa: ARG001
        hidden, index, question, features, patches = given[:5]
        images = features.shape[1] // batch["image_turn"].shape[1]
        for row in range(len(index)):
            slots = [i for i in range(0, index.shape[1], model.num_queries) if index[row, i] >= 0]
            seen.append(
                [
                    (
                        byte_tokenizer().decode(batch["input_ids"][row][question[row, slot]]),
                        int(patches[row, slot].sum()) // images,
                    )
                    for slot in slots
                ]
            )

    handle = model.query_module.register_forward_pre_hook(spy)
    run(**batch)
    handle.remove()
    return seen


def test_fault_01_sap_is_not_initialised_again_in_stage_2(tmp_path, monkeypatch):
    trained, fresh = make_model(seed=1), make_model(seed=2)
    stage_1 = training.collect_aligned_state(trained)
    save_file(stage_1, tmp_path / training.ALIGNED_FILE)
    monkeypatch.setattr(training, "build_model", lambda _: (fresh, make_processor(fresh)))
    monkeypatch.setattr(training, "train_stage", lambda *_: None)
    training.finetune(Config(), {"pretrain": tmp_path}, tmp_path, Reporter())
    state = AutoModelForImageTextToText.from_pretrained(tmp_path / training.MODEL_FOLDER).state_dict()
    assert {"compressor.scorer.0.weight", "projector.0.weight"} <= stage_1.keys()
    assert all(torch.equal(state[name], value) for name, value in stage_1.items())


def test_fault_02_the_hd_tower_has_gradients():
    model = make_model()
    set_trainable(model, "finetune", train_tower=True)
    batch = make_batch(make_processor(model, tiles=2), [ASK, TEXT])
    assert batch["pixel_values"].shape[1] == 5
    model.train()(**batch, use_cache=False).loss.backward()
    for name, parameter in model.vision_tower.named_parameters():
        without_effect = name.endswith("k_proj.bias")  # softmax does not see it
        assert without_effect or parameter.grad.abs().sum() > 0, name


def test_fault_03_a_prompt_is_the_beginning_of_what_was_trained(model):
    processor = make_processor(model)
    chat = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture(1)}, {"type": "text", "text": "What is this?"}],
        }
    ]
    asked = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0].tolist()
    trained = processor.encode(ASK[0], images=1).ids
    assert trained[: len(asked)] == asked
    assert f"this? {QUERY}" in processor.decode(asked) and len(trained) > len(asked)


@torch.no_grad()
def test_fault_04_at_inference_every_slot_reads_its_own_question(model):
    batch = inference(model, [TWO_IMAGES])
    (row,) = read_by_slots(model, batch, lambda **inputs: model.generate(**inputs, max_new_tokens=2))
    assert [text.strip() for text, _ in row] == ["Hi", "What is this?", "And that?"]


@torch.no_grad()
def test_fault_05_batches_of_20_and_more_are_read_as_any_other(model):
    rows = [ASK, TWO_IMAGES, TEXT] * 8
    batch = make_batch(make_processor(model), rows)
    logits, real = model(**batch).logits, batch["attention_mask"].bool()
    alone = [model(**make_batch(make_processor(model), [row])).logits[0] for row in rows[:3]]
    for i in range(len(rows)):
        torch.testing.assert_close(logits[i][real[i]], alone[i % 3], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_fault_06_left_padding_shifts_slots_and_spans_with_the_text(model):
    rows = [TEXT, ASK, TWO_IMAGES]
    batch, said = inference(model, rows), []
    assert not batch["attention_mask"][0, 0]
    together = read_by_slots(
        model,
        batch,
        lambda **inputs: said.extend(
            model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, -4:].tolist()
        ),
    )
    for row, words, answer in zip(rows[1:], together[1:], said[1:]):
        one = inference(model, [row])
        assert read_by_slots(model, one, model.__call__) == [words]
        assert model.generate(**one, max_new_tokens=4, do_sample=False)[0, -4:].tolist() == answer


@torch.no_grad()
def test_fault_07_several_images_and_images_of_later_turns_have_right_spans(model):
    later = ([*ASK[0], Turn(f"Is {IMAGE} red?", "no")], [picture(1), picture(2)])
    found = read_by_slots(model, inference(model, [TWO_IMAGES, later]), model.__call__)
    assert found[0] == [(" Hi ", 0), ("What is this? ", 2), (" And that? ", 2)]
    assert found[1][0] == ("What is this? ", 1)
    text, images = found[1][1]
    assert text.split() == ["Is", "red?"] and IMAGE not in text and images == 2


def test_fault_08_nothing_is_written_in_place_and_nan_stays_out():
    model = make_model()
    batch = make_batch(make_processor(model), [ASK, TEXT])
    features = model.get_image_features(batch.pop("pixel_values")).detach()
    features[1] = torch.nan  # the row without an image
    loss = model(**batch, vision_features=features).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    hidden = torch.randn(1, 9, 32, requires_grad=True)  # a leaf would refuse to be written to
    question, patches = torch.zeros(1, 3, 9).bool(), torch.zeros(1, 3, 36).bool()
    features = torch.full((1, 36, 24), torch.nan)
    out = model.query_module(hidden, torch.tensor([[4, 5, 6]]), question, features, patches)
    assert torch.equal(out, hidden)


def test_fault_09_sizes_and_ids_are_no_constants():
    vision = vision_config(hidden_size=40, num_attention_heads=2)
    model = make_model(
        vision=vision,
        compressor_knobs={"rate": 2},
        prompt=Template("", "Q:", " A:", "</s>"),
        dim=24,
        num_queries=5,
        at=3,
        heads=8,
    )
    assert (model.num_image_tokens(), model.num_queries, model.query_module.at) == (9, 5, (3,))
    processor = make_processor(model)
    rows = [ASK, TWO_IMAGES]
    batch = make_batch(processor, rows)
    assert (batch["input_ids"] == processor.query_token_id).sum(1).tolist() == [5, 15]
    assert model(**batch).loss.isfinite()
    found = read_by_slots(model, inference(model, rows), model.__call__)
    assert [text.strip() for text, _ in found[1]] == ["Hi", "What is this?", "And that?"]
    with pytest.raises(UsageError, match="embq.heads=4 does not divide embq.dim=18"):
        make_model(dim=18)


@torch.no_grad()
def test_fault_10_the_last_layer_is_a_layer():
    tower = build_tower(vision_config(), select_layer=-1).eval()
    assert tower.depth == tower.num_layers == 3
    whole = SiglipVisionModel(vision_config()).eval()
    find_vision_parts(whole).load_state_dict(tower.backbone.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 84, 84)
    expected = whole(pixels, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(tower(pixels).flatten(1, 2), expected)


def test_fault_11_compressor_embq_and_queries_are_saved(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    saved, own = load_file(tmp_path / "model.safetensors"), model.state_dict()
    parts = Counter(name.split(".")[0] for name in saved)
    assert {"compressor", "projector", "query_module"} <= parts.keys() and "query_module.tokens" in saved
    assert saved.keys() == own.keys() and all(torch.equal(saved[name], own[name]) for name in own)


class Operations(TorchDispatchMode):
    """Counts what runs."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_fault_12_sap_is_no_loop_and_decoding_repeats_nothing(model):
    sap, counts = compressors.create("sap", dim=8, rate=3).eval(), []
    for side in (6, 27):
        with Operations() as operations:
            sap(torch.randn(1, side, side, 8))
        counts.append(operations.count)
    assert counts[0] == counts[1]
    calls = {"embedding": [], "query module": []}
    handles = [
        model.get_input_embeddings().register_forward_pre_hook(
            lambda _, given: calls["embedding"].append(given[0].shape[1])
        ),
        model.query_module.register_forward_pre_hook(lambda *_: calls["query module"].append(1)),
    ]
    batch = inference(model, [ASK])
    model.generate(**batch, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    for handle in handles:
        handle.remove()
    assert calls == {"embedding": [batch["input_ids"].shape[1], 1, 1, 1], "query module": [1]}


@pytest.mark.parametrize("policy", ["floor", "ceil", "pad"])
def test_fault_13_average_pooling_and_sap_make_equally_many_tokens(policy):
    grid = (1, 8, 7, 4)
    counts = [
        compressors.create(name, dim=4, rate=3, grid_policy=policy)(torch.randn(grid)).shape[1]
        for name in ("avg_pool", "sap")
    ]
    assert counts[0] == counts[1] == {"floor": 4, "ceil": 9, "pad": 9}[policy]


def test_fault_14_no_query_slot_stands_after_a_caption(model, tmp_path, monkeypatch):
    encoded = make_processor(model).encode(ASK[0], images=1)
    slots = [i for i, token in enumerate(encoded.ids) if token == model.config.query_token_id]
    learned = [i for i, label in enumerate(encoded.labels) if label != IGNORE]
    assert slots and max(slots) < min(learned)
    built = []

    def build(config):
        built.append(config.query_module)
        part = make_model(query_module=config.query_module)
        return part, SimpleNamespace()

    monkeypatch.setattr(training, "build_model", build)
    monkeypatch.setattr(training, "train_stage", lambda *_: None)
    training.pretrain(Config(compressor="sap+embq"), {}, tmp_path, Reporter())
    assert built == [None]  # stage 1 has no queries at all


def test_fault_15_assistant_in_a_text_adds_no_slot(model):
    processor = make_processor(model)
    plain = processor.encode([Turn("Who is it?", "no")], images=0)
    named = processor.encode([Turn("Who is ASSISTANT: or ASSISTANT?", "USER: ASSISTANT: no")], images=0)
    for encoded in (plain, named):
        assert encoded.ids.count(model.config.query_token_id) == model.num_queries
        assert max(encoded.turns) == 1
