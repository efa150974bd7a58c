"""The composed model: what it refuses, how it is saved, counted, resized, and run in other types."""

import copy

import pytest
import torch
from factories import (
    KNOBS,
    LLMS,
    byte_tokenizer,
    make_batch,
    make_config,
    make_llm,
    make_model,
    make_processor,
    picture,
    prompt,
    vision_config,
)
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import compressors
from compressors.errors import UsageError
from compressors.key_value import parse_settings
from connectors.towers.build import build_tower
from experiments.config.cells import make_cells
from experiments.models import build
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.conversation import IGNORE, IMAGE, QUERY, Template, Turn, render_turns
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.visual_prompt import check_count, shrink_pixels

PLAIN = Template(system="")
ROW = ([Turn(f"{IMAGE}\nWhat is this?", "A dog.")], [picture(1)])
TWO = (
    [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"{IMAGE}And that?", "The cat")],
    [picture(2), picture(3)],
)
TEXT = ([Turn("Hi", "no")], [])


@pytest.fixture
def batch(model) -> dict[str, Tensor]:
    return make_batch(make_processor(model), [ROW, TWO, TEXT])


def test_what_stands_where(model):
    """Visual tokens image by image, query tokens slot by slot, all else from the embedding table."""
    batch = make_batch(make_processor(model), [TEXT, TWO, ROW])
    ids, features = batch["input_ids"], model.get_image_features(batch["pixel_values"])
    embeds, *_ = model.embed_tokens(ids, features, batch["image_turn"], batch["turns"], None)
    is_image, is_query = ids == model.config.image_token_id, ids == model.config.query_token_id
    images = torch.cat([features[1, :2], features[2, :1]])  # in the order of rows
    visual = model.projector(model.compressor(images)).flatten(0, 1)
    torch.testing.assert_close(embeds[is_image], visual)
    assert torch.equal(embeds[is_query].unflatten(0, (4, 3)), model.query_module.tokens.expand(4, -1, -1))
    other = ~(is_image | is_query)
    assert torch.equal(embeds[other], model.get_input_embeddings()(ids[other]))


def one_line(message: str):
    return pytest.raises(UsageError, match=r"\A(?!.*\n)" + message)


def test_wrong_number_of_placeholders(model, batch):
    batch["input_ids"][0][batch["input_ids"][0] == model.config.image_token_id] = 7
    with one_line("row 0 has 0 image placeholders but its images make 4 visual tokens"):
        model(**batch)


def test_placeholders_without_images(model, batch):
    del batch["pixel_values"]
    with one_line("row 0 has 4 image placeholders but its images make 0 visual tokens"):
        model(**batch)


def test_images_of_another_grid(model, batch):
    batch["pixel_values"] = torch.zeros(3, 2, 3, 126, 126)
    with one_line("row 0 has 4 image placeholders but its images make 9 visual tokens"):
        model(**batch)


class OnGPU(Tensor):
    """A tensor of the CPU that says it is on a GPU."""

    device = torch.device("cuda")


def test_the_count_of_placeholders_on_a_gpu(monkeypatch):
    """A prompt that is answered is refused as on the CPU; a step of training leaves it to the device."""
    found = []
    monkeypatch.setattr(torch, "_assert_async", lambda *arguments: found.append(arguments))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # no stream to ask whether it is recorded
    is_image = torch.ones(2, 5, dtype=torch.bool).as_subclass(OnGPU)
    image_turn = torch.ones(2, 1)
    for context, is_training in ((torch.enable_grad(), False), (torch.no_grad(), True)):
        with (
            context,
            one_line("row 0 has 5 image placeholders but .* 4 visual tokens; .*image_tokens = model"),
        ):
            check_count(is_image, 4, image_turn, is_training)
    assert not found
    check_count(is_image, 4, image_turn, is_training=True)
    check_count(is_image, 5, image_turn, is_training=True)
    check_count(is_image[:, :1], 0, None)  # a word of an answer is not looked at
    assert [bool(is_right) for is_right, _ in found] == [False, True]
    assert len(found[0][1]) < 256  # CUDA takes no longer message


NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_a_processor_has_to_follow_the_compressor(device):
    model = make_model("llama", "identity").to(device)
    processor = make_processor(model)
    model.set_compressor("divprune", tokens=9)

    def answer():
        batch = processor(text=prompt(processor, f"{IMAGE} What?"), images=picture(1)).to(device)
        return model.generate(**batch, max_new_tokens=1)

    with one_line("row 0 has 36 image placeholders but its images make 9 visual tokens"):
        answer()
    processor.image_tokens = model.num_image_tokens(*processor.crop_size)
    answer()


@pytest.mark.parametrize("missing", ["turns", "image_turn"])
def test_images_without_turns(model, batch, missing):
    del batch[missing]
    with one_line("images were given without `turns` and `image_turn`"):
        model(**batch)


def test_images_with_a_part_of_the_prompt(model, batch):
    """As a reused cache or a prefill in chunks would give it; it must not pass silently on any device."""
    with one_line("`turns` has .* tokens and `input_ids` 5: images and questions need the whole prompt"):
        model(**{**batch, "input_ids": batch["input_ids"][:, -5:]})


def test_rate_that_does_not_fit_the_grid():
    with one_line("rate=4 does not divide the 6x6 patch grid"):
        make_model(compressor_knobs={"rate": 4}).num_image_tokens()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compressor": "sapp"}, "unknown compressor 'sapp'; did you mean 'sap'"),
        ({"compressor_knobs": {"rte": 3}}, "compressor 'sap' has no knob 'rte'; did you mean 'rate'"),
        ({"compressor_knobs": {"rate": "3"}}, "sap.rate='3': expected int"),
        ({"query_module": "emb"}, "unknown query module 'emb'; did you mean 'embq'"),
        ({"fusion": "sum"}, "embq.fusion='sum'"),
        ({"at": 5}, "embq.at=5: the LLM has decoder layers 1 to 4"),
        ({"dim": 18}, "embq.heads=4 does not divide embq.dim=18"),
    ],
)
def test_bad_configurations(changes, message):
    with one_line(message):
        FlashSlothForConditionalGeneration(make_config(**changes))


def test_bad_projectors():
    with one_line("unknown projector 'mlp'"):
        FlashSlothConfig(projector="mlp")
    with one_line("projector knobs .'depth'. need a projector"):
        FlashSlothConfig(projector_knobs={"depth": 3})
    with one_line("projector=identity: the visual tokens are 24 wide and the LLM 32"):
        config = make_config()
        config.projector = "identity"
        FlashSlothForConditionalGeneration(config)


def test_configuration_round_trip(tmp_path):
    config = make_config("qwen2", "ldpv2", at=(2, 3), prompt=PLAIN)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is FlashSlothConfig
    assert loaded.to_diff_dict().keys() == config.to_diff_dict().keys()
    assert loaded.to_json_string() == config.to_json_string()
    assert loaded.template == PLAIN
    assert FlashSlothConfig().template == Template()
    assert type(loaded.text_config).__name__ == "Qwen2Config" and loaded.vision_config.image_size == 84
    assert FlashSlothForConditionalGeneration(loaded).query_module.at == (2, 3)


def test_given_parts_keep_their_weights():
    tower, llm = build_tower(vision_config()), make_llm("phi", seed=3)
    with torch.no_grad():
        for part in (tower, llm):
            for p in part.parameters():
                p.normal_()
    states = [copy.deepcopy(part.state_dict()) for part in (tower, llm)]
    model = FlashSlothForConditionalGeneration(make_config(), tower, llm)
    assert model.vision_tower is tower and model.language_model is llm
    for part, state in zip((tower, llm), states):
        assert all(torch.equal(value, state[name]) for name, value in part.state_dict().items())


def statistics(part: torch.nn.Module) -> dict[str, tuple[float, float, int]]:
    """Mean, spread and size of each parameter of more than one number."""
    return {
        name: (p.mean().item(), p.std().item(), p.numel())
        for name, p in part.named_parameters()
        if p.numel() > 1
    }


@pytest.mark.parametrize("name", compressors.names())
def test_new_compressors_start_as_their_constructors_make_them(name):
    """transformers initialises a model's modules once more, and not by the same rules."""
    model = FlashSlothForConditionalGeneration(make_config(compressor=name))
    alone = compressors.create(name, dim=24, llm_dim=32, **KNOBS.get(name, {}))
    there, here = statistics(model.compressor), statistics(alone)
    assert set(there) == set(here)
    for key, (mean, std, count) in here.items():
        luck = 0.5 if count > 16 else 0.9  # the spread of four random numbers is itself random
        assert there[key][1] == pytest.approx(std, rel=luck, abs=1e-9), key
        assert there[key][0] == pytest.approx(mean, abs=max(std, 1e-9)), key


def test_new_query_module_starts_as_its_constructor_makes_it():
    model = FlashSlothForConditionalGeneration(make_config(fusion="gated", num_queries=64))
    (block,) = model.query_module.blocks
    assert not block.fusion.gate.weight.any() and not block.fusion.gate.bias.any()
    assert 0.015 < model.query_module.tokens.std() < 0.025
    assert (block.layers[0].ln_q.weight == 1).all() and not block.layers[0].ln_q.bias.any()
    assert block.up.weight.std().item() == pytest.approx(torch.nn.Linear(24, 32).weight.std().item(), rel=0.2)


@pytest.mark.parametrize("llm", ["gemma", "gemma2", "gemma3", "llama"])
def test_the_dot_is_what_the_llm_reads_for_one(llm):
    """Gemma scales the rows of its table."""
    model = make_model(llm)
    token = byte_tokenizer()(" .", add_special_tokens=False)["input_ids"][-1]
    dot = build.find_dot_embedding(model, byte_tokenizer())
    with torch.no_grad():
        read = model.language_model(input_ids=torch.tensor([[token]])).logits
        assert torch.equal(model.language_model(inputs_embeds=dot[None, None]).logits, read)
    assert not dot.requires_grad


def test_same_seed_same_model():
    one, other, third = (make_model(seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(one["compressor.scorer.0.weight"], third["compressor.scorer.0.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("llm", ["llama", "qwen2"])
def test_save_and_load_with_tied_embeddings_and_in_other_types(llm, tied, dtype, tmp_path):
    model = make_model(llm, llm_changes={"tie_word_embeddings": tied}).to(dtype)
    batch = make_batch(make_processor(model), [ROW, TEXT])
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    shared = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert shared == tied
    if dtype == torch.float32:  # `.to(bfloat16)` rounds rotary frequencies too, loading does not
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, again(**batch).logits)
    full = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert {p.dtype for p in full.parameters()} == {torch.float32}


FALCON_H1 = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}


@pytest.mark.parametrize(
    ("llm", "changes"),
    [("falcon_h1", FALCON_H1), ("gemma3", {}), ("gpt2", {}), ("llama", {}), ("lfm2", {}), ("qwen2", {})],
)
def test_buffers_that_no_file_has_are_loaded_as_they_were(llm, changes, tmp_path):
    model = make_model(llm, llm_changes=changes)
    batch = make_batch(make_processor(model), [ROW, TEXT])
    model.save_pretrained(tmp_path)
    loaded = FlashSlothForConditionalGeneration.from_pretrained(tmp_path)
    buffers = dict(model.named_buffers())
    loaded_buffers = dict(loaded.named_buffers())
    assert buffers.keys() == loaded_buffers.keys()
    for name, buffer in buffers.items():
        assert torch.equal(loaded_buffers[name], buffer), name
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("query_module", ["embq", "llava_mini"])
@pytest.mark.parametrize("part", ["projector", "query_module", "language_model"])
def test_a_part_that_is_offloaded(query_module, part, tmp_path):
    model = make_model(query_module=query_module)
    batch = make_batch(make_processor(model), [ROW, TEXT])
    model.save_pretrained(tmp_path / "model")
    places = dict.fromkeys(
        ("vision_tower", "compressor", "projector", "query_module", "language_model"), "cpu"
    )
    places[part] = "disk"
    loaded = FlashSlothForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "offloaded"
    )
    with torch.no_grad():
        for _ in range(2):  # it is there for each pass
            torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)


def test_language_model_can_be_taken_out(model, tmp_path):
    model.language_model.save_pretrained(tmp_path)
    alone = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.randint(6, 300, (2, 9))
    assert torch.equal(alone(ids).logits, model.language_model(ids).logits)


@pytest.mark.parametrize("llm", LLMS)
def test_resize_token_embeddings(llm, tmp_path):
    model = make_model(llm)
    batch = make_batch(make_processor(model), [ROW, TEXT])
    before = model(**batch).logits
    model.resize_token_embeddings(330, mean_resizing=False)
    assert model.get_input_embeddings().num_embeddings == model.get_output_embeddings().out_features == 330
    assert model.config.text_config.vocab_size == 330
    torch.testing.assert_close(model(**batch).logits[..., :320], before)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_placeholders_beyond_the_embedding():
    """Released checkpoints have fewer rows than the tokenizer has ids."""
    small = make_model()
    batch = make_batch(make_processor(small), [ROW, TWO, TEXT])
    large = copy.deepcopy(small)
    large.config.image_token_id, large.config.query_token_id = 400, 401
    moved = batch["input_ids"].clone()
    moved[batch["input_ids"] == small.config.image_token_id] = 400
    moved[batch["input_ids"] == small.config.query_token_id] = 401
    assert torch.equal(large(**{**batch, "input_ids": moved}).logits, small(**batch).logits)
    prompt = {k: v for k, v in batch.items() if k != "labels"}
    said = [
        m.generate(**{**prompt, "input_ids": ids}, max_new_tokens=3, do_sample=False)[:, -3:]
        for m, ids in ((small, batch["input_ids"]), (large, moved))
    ]
    assert torch.equal(*said)


@pytest.mark.parametrize("query_module", [None, "embq"])
def test_loss_is_the_mean_over_answer_tokens(query_module):
    model = make_model(query_module=query_module)
    batch = make_batch(make_processor(model), [ROW, TWO, TEXT])
    out = model(**batch)
    flat, labels = out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(flat, labels, ignore_index=IGNORE))
    assert model(**{k: v for k, v in batch.items() if k != "labels"}).loss is None


def test_accumulated_loss_is_the_batchs(model):
    """1 x 3 rows == 3 x 1 row when each piece knows the step's number of answer tokens."""
    processor, rows = make_processor(model), [ROW, TWO, TEXT]
    whole = make_batch(processor, rows)
    items = int((whole["labels"] != IGNORE).sum())
    pieces = [model(**make_batch(processor, [row]), num_items_in_batch=items).loss for row in rows]
    torch.testing.assert_close(sum(pieces), model(**whole).loss)
    as_tensor = model(**whole, num_items_in_batch=torch.tensor(items)).loss
    torch.testing.assert_close(as_tensor, model(**whole).loss)


def test_logits_to_keep(model, batch):
    del batch["labels"]
    torch.testing.assert_close(model(**batch, logits_to_keep=1).logits, model(**batch).logits[:, -1:])


@pytest.mark.parametrize("compressor", ["sap", "ldpv2", "qformer"])
@pytest.mark.parametrize("released", [False, True])
def test_bfloat16(released, compressor):
    model = make_model(compressor=compressor, released=released)
    batch = make_batch(make_processor(model), [ROW, TWO, TEXT])
    exact = model(**batch)
    half = copy.deepcopy(model).to(torch.bfloat16)
    out = half(**batch)  # pixels are still float32
    assert out.logits.dtype == torch.bfloat16 and out.loss.isfinite()
    assert (out.loss - exact.loss).abs() < 0.1
    out.loss.backward()
    features = model.get_image_features(batch.pop("pixel_values"))
    from_features = half(**batch, vision_features=features)
    assert (from_features.loss - exact.loss).abs() < 0.1
    with torch.autocast("cpu", torch.bfloat16):
        assert (model(**batch, vision_features=features).loss - exact.loss).abs() < 0.1


def test_text_aware_compressor_reads_its_own_turns_question():
    knobs = {"num_queries": 4, "num_layers": 2, "heads": 2, "width": 8, "text": True, "dropout": 0.0}
    model = make_model(compressor="qformer", compressor_knobs=knobs, query_module=None)
    assert model.compressor.needs_text
    processor = make_processor(model)

    def visual(rows, side="left", row=0):
        batch = make_batch(processor, rows, side)
        features, ids = model.get_image_features(batch["pixel_values"]), batch["input_ids"]
        embeds, *_ = model.embed_tokens(ids, features, batch["image_turn"], batch["turns"], None)
        return embeds[row][ids[row] == model.config.image_token_id].unflatten(0, (-1, 4))  # (images, 4, D)

    turns, images = TWO
    first, second = visual([TWO])
    other = visual([([Turn(f"{IMAGE}\nWhat is that?", "A dog."), turns[1]], images)])
    assert not torch.allclose(first, other[0])
    changed = visual([([turns[0], Turn(f"{IMAGE}And this?", "The cat")], images)])
    torch.testing.assert_close(changed[0], first)
    assert not torch.allclose(changed[1], second)
    for side in ("left", "right"):  # neither neighbours nor padding nor the answer matter
        torch.testing.assert_close(visual([ROW, TWO, TEXT], side, 1), torch.stack([first, second]))
    prompt = [Turn(turns[0].question, "no"), Turn(turns[1].question)]
    torch.testing.assert_close(visual([(prompt, images)]), torch.stack([first, second]))


def test_text_aware_compressor_counts_the_question_alone():
    """`max_text` bounds the question, not the whole row with its visual tokens and answers."""
    knobs = {"num_queries": 4, "num_layers": 2, "heads": 2, "width": 8, "text": True, "max_text": 20}
    model = make_model(compressor="qformer", compressor_knobs=knobs)
    long_answer = ([Turn(f"{IMAGE}What?", "no " * 50)], [picture()])
    assert model(**make_batch(make_processor(model), [long_answer, TEXT])).loss.isfinite()
    with one_line("max_text=20: too short for a question of"):
        long_question = ([Turn(f"{IMAGE}" + "What? " * 20, "no")], [picture()])
        model(**make_batch(make_processor(model), [long_question]))


def test_downsampled_images():
    model = make_model(compressor="downsample", compressor_knobs={"rate": 2})
    assert model.num_image_tokens() == 9
    pixels = torch.rand(1, 1, 3, 84, 84)
    features = model.get_image_features(pixels)
    assert features.shape == (1, 1, 3, 3, 24)
    torch.testing.assert_close(features[0], model.vision_tower(shrink_pixels(pixels[0], 2)))
    assert shrink_pixels(pixels[0], 2).shape == (1, 3, 42, 42) and shrink_pixels(pixels[0], 1) is not None
    assert model.num_image_tokens(84, 168) == 18


@pytest.fixture
def full_size_sources(tmp_path) -> list[str]:
    """phi-2 and SigLIP so400m as far as their configurations."""
    parts = {
        "llm": AutoConfig.for_model(
            "phi",
            vocab_size=51200,
            hidden_size=2560,
            intermediate_size=10240,
            num_hidden_layers=32,
            num_attention_heads=32,
            pad_token_id=None,
        ),
        "tower": AutoConfig.for_model(
            "siglip_vision_model",
            image_size=384,
            patch_size=14,
            hidden_size=1152,
            intermediate_size=4304,
            num_hidden_layers=27,
            num_attention_heads=16,
        ),
    }
    for name, config in parts.items():
        config.save_pretrained(tmp_path / name)
    return [f"{name}.source={tmp_path / name}" for name in parts]


@pytest.mark.parametrize(("preset", "crops"), [("flashsloth", 1), ("flashsloth_hd", 5)])
def test_presets_at_full_size_on_the_meta_device(preset, crops, full_size_sources):
    """The paper's parameter and token counts, without weights."""
    (cell,) = make_cells(parse_settings([f"preset={preset}", *full_size_sources]))
    with torch.device("meta"):
        model, size = build.build_skeleton(cell.config)
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["compressor"] == 1_329_409
    assert count["query_module"] == 8_084_416 + 23_040
    assert count["projector"] == 1152 * 2560 + 2560 + 2560 * 2560 + 2560
    assert count["language_model"] == 2_779_683_840 and 3.9e8 < count["vision_tower"] < 4.3e8
    assert (size, model.num_image_tokens(), model.num_queries, model.query_module.at) == (384, 81, 9, (8,))
    tokenizer = byte_tokenizer()
    ids = model.config.image_token_id, model.config.query_token_id = tokenizer.convert_tokens_to_ids(
        [IMAGE, QUERY]
    )
    processor = build.make_processor(cell.config, model, tokenizer)
    batch = processor(images=picture(), text=render_turns([Turn(f"{IMAGE}What?")], model.config.template))
    assert [(batch["input_ids"] == i).sum() for i in ids] == [81 * crops, 9]  # HD: 405
    batch = {name: value.to("meta") for name, value in batch.items()}
    features = model.get_image_features(batch["pixel_values"])
    embeds, context, *_ = model.embed_tokens(
        batch["input_ids"], features, batch["image_turn"], batch["turns"], batch["query_index"]
    )
    assert embeds.shape[1:] == (batch["input_ids"].shape[1], 2560)
    assert context.features.shape == (1, crops * 729, 1152)


@pytest.mark.parametrize("odd", [{"return_dict": False}, {"output_hidden_states": 0.5}])
def test_outputs_that_configurations_of_parts_ask_for_change_nothing(odd):
    """A tower or LLM saved for a model that wants tuples, or with a number where a list belongs."""
    plain = make_model()
    model = make_model(llm_changes=odd, vision=vision_config(**odd))
    batch = make_batch(make_processor(model), [ROW])
    torch.testing.assert_close(model(**batch).logits, plain(**batch).logits, rtol=0, atol=0)
    prompt = {key: value for key, value in batch.items() if key != "labels"}
    answers = [each.generate(**prompt, max_new_tokens=2, do_sample=False) for each in (model, plain)]
    torch.testing.assert_close(*answers)
