"""A compressor in multimodal models of transformers: its inputs and outputs, and its removal."""

import copy
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from factories import KNOBS
from peft import LoraConfig, get_peft_model
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
    picture,
    pieces_refused,
    prompt,
    train_loss,
    two_rows,
)
from reuse_models import GRID, GRID_FAMILIES, TILE_FAMILIES, VISION
from text_towers import save_text_tower
from transformers import AutoConfig, AutoModel

import compressors
from compressors.errors import UsageError
from llm_adapters import reuse
from llm_adapters.conversation import QUERY, QUESTION
from llm_adapters.reuse.wrapping import bind_arguments

# what each model does itself; with that compressor nothing may change
OWN = {
    **dict.fromkeys(
        (
            "llava",
            "vipllava",
            "llava_next",
            "llava_next_video",
            "llava_onevision",
            "paligemma",
            "janus",
            "deepseek_vl",
            "perception_lm",
            "pixtral",
            "fast_vlm",
            "gemma3n",
        ),
        ("identity", {}),
    ),
    **dict.fromkeys(("gemma3", "gemma4"), ("avg_pool", {"rate": 2})),
}
SHUFFLE = ("pixel_shuffle", {"rate": 2})


@over_families
def test_models_own_reduction_changes_nothing(family):
    """Patch maps, splits, newlines and M-RoPE are right where the model's own reduction, as a compressor of
    ours, gives the model's own logits."""
    model, processor = make_model(family), make_processor(family)
    rows = two_rows(family) + [(prompt(family, images=2), [picture(3), picture(4, 24, 40)])]
    before = inputs(processor, rows)
    with torch.no_grad():
        logits = model(**before).logits
    if family == "idefics2":
        attach_own_resampler(model, processor)
    else:
        name, knobs = OWN.get(family, SHUFFLE)
        reuse.attach(model, processor, name, **knobs)
    after = inputs(processor, rows)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    most = 1e-4 if family == "idefics2" else 1e-5  # which masks padding that is cut off here
    with torch.no_grad():
        torch.testing.assert_close(model(**after).logits, logits, atol=most, rtol=most)
    assert model.slothkit.projector is None or family == "idefics2"


def attach_own_resampler(model, processor):
    """Idefics 2's own layers, projector and reduction, in the place of a resampler of ours."""
    connector = model.model.connector
    latents = connector.perceiver_resampler.n_latents
    knobs = {"num_queries": latents, "num_layers": 1, "width": 32, "new_projector": "identity"}
    reuse.attach(model, processor, "resampler", form="idefics2", **knobs)

    def resample(features):
        patches = features.flatten(1, 2)
        projected = connector.modality_projection(patches)
        return connector.perceiver_resampler(projected, torch.ones(projected.shape[:2]))

    model.slothkit.compressor.forward = resample


@over_families
def test_detach_restores_exactly(family):
    model, processor = make_model(family), make_processor(family)
    rows, config = two_rows(family), model.config.to_dict()
    before, state = inputs(processor, rows), copy.deepcopy(model.state_dict())
    settings, tokens = processor.to_json_string(), len(processor.tokenizer)
    with torch.no_grad():
        logits = model(**before).logits
        attributes = {name: set(vars(module)) for name, module in model.named_modules()}
        reuse.attach(model, processor, **SAP, **EMBQ)
        assert model.state_dict().keys() - state.keys() == {
            f"slothkit.{key}" for key in model.slothkit.state_dict()
        }
        reuse.detach(model, processor)
        after = inputs(processor, rows)
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert torch.equal(model(**after).logits, logits)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[k], state[k]) for k in state)
    assert model.config.to_dict() == config
    assert (processor.to_json_string(), len(processor.tokenizer)) == (settings, tokens)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


@pytest.fixture(scope="module")
def shared():
    """A model and a processor a family, for compressors one after another."""
    made = {}

    def get(family: str):
        if family not in made:
            made[family] = (make_model(family), make_processor(family))
        model, processor = made[family]
        if hasattr(model, "slothkit"):
            reuse.detach(model, processor)
        model.zero_grad()
        return model, processor

    return get


@pytest.fixture(scope="module")
def text_encoders(tmp_path_factory):
    """Whole checkpoints of towers as the families have, by the type of these."""
    sources = {}
    for kind in ("clip", "siglip"):
        folder = tmp_path_factory.mktemp(kind)
        sources[f"{kind}_vision_model"] = save_text_tower(folder, kind, **VISION)
    return sources


@pytest.mark.parametrize(("family", "name"), family_turns(reuse.FAMILIES, compressors.names(), one_in=4))
def test_compressors_in_families(family, name, shared, text_encoders):
    model, processor = shared(family)
    knobs, dim = dict(KNOBS.get(name, {})), model.config.get_text_config().hidden_size
    if "block" in compressors.knobs(name):
        knobs["block"] = 1  # of three
    part = compressors.create(name, dim=16, llm_dim=dim, **knobs)
    has_cues = reuse.FAMILIES[family].feature_layer is not None
    if (part.needs_cues and not has_cues) or part.image_rate != 1:
        with pytest.raises(UsageError, match="asks the vision tower|shrinks the image"):
            reuse.attach(model, processor, name, **knobs)
        assert not hasattr(model, "slothkit") and not hasattr(processor, "attached")
        pytest.skip("it needs cues that the tower does not give, or shrinks the image: refused")
    if part.needs_tower_text:
        tower = model.model.get_submodule(reuse.FAMILIES[family].tower)
        knobs["text_encoder"] = text_encoders[tower.config.model_type]
    reuse.attach(model, processor, name, **knobs)
    batch = inputs(processor, [(prompt(family), [picture(1)]), (prompt(family), [picture(2)])])
    found = (batch["input_ids"] == model.config.image_token_id).sum(1)
    each = model.slothkit.compressor.num_tokens(GRID, GRID)
    if family not in TILE_FAMILIES:  # newlines
        assert all(count and count % each == 0 for count in found.tolist())
    # a choice that is hard in use may be soft in training; one of several scales is drawn there
    model.slothkit.compressor.train(name != "matryoshka")
    train_loss(model, batch).backward()
    model.slothkit.compressor.eval()
    for key, parameter in model.slothkit.compressor.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    if any(True for _ in model.slothkit.compressor.parameters()):
        assert any(p.grad.abs().sum() > 0 for p in model.slothkit.compressor.parameters())
    assert len(answers(model, batch)[0]) > 0


@over_families
@pytest.mark.parametrize("name", ["sap", "qformer"])
def test_images_of_every_shape(family, name):
    """The processor's count is the model's, or this is an error."""
    model, processor = make_model(family), make_processor(family)
    if family == "gemma4":  # as it does, to as many patches as may be
        processor.image_processor.do_resize = True
    reuse.attach(model, processor, name, **KNOBS.get(name, {"rate": 4, "grid_policy": "ceil"}))
    for width, height in ((24, 24), (25, 60), (100, 30), (47, 48), (64, 20), (13, 44)):
        batch = inputs(processor, [(prompt(family), [picture(1, width, height)])])
        with torch.no_grad():
            assert model(**batch).logits.isfinite().all()
        if family in (*TILE_FAMILIES, *GRID_FAMILIES, "gemma4"):
            told = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
            assert told == [int((batch["input_ids"] == model.config.image_token_id).sum())]


@pytest.mark.parametrize("kind", family_params("qwen2_vl", "qwen2_5_vl"))
def test_an_image_and_a_video(kind):
    model, processor = make_model(kind), make_processor(kind)
    processor.video_processor.size = {"shortest_edge": 24 * 24, "longest_edge": 24 * 24 * 4}
    frames = np.random.default_rng(0).integers(0, 255, (4, 24, 24, 3), dtype=np.uint8)

    def batch() -> dict:
        text = "<vision_start><image><vision_end> and <vision_start><video><vision_end> What?"
        return dict(
            processor(
                text=[text],
                images=[picture(1)],
                videos=[frames],
                fps=2,
                do_sample_frames=False,
                return_tensors="pt",
            )
        )

    with torch.no_grad():
        logits = model(**batch()).logits
        reuse.attach(model, processor, "pixel_shuffle", rate=2)
        torch.testing.assert_close(model(**batch()).logits, logits, atol=1e-5, rtol=1e-5)
    reuse.detach(model, processor)
    reuse.attach(model, processor, **SAP)
    train_loss(model, batch()).backward()
    assert any(p.grad.abs().sum() > 0 for p in model.slothkit.compressor.parameters())
    told = model.generate(**batch(), max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch()).logits[:, -1], told.logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", family_params("qwen2_vl", "qwen2_5_vl"))
@pytest.mark.parametrize("name", ["avg_pool", "qformer"])
def test_positions_of_compressed_grids(kind, name):
    model, processor = make_model(kind), make_processor(kind)
    reuse.attach(model, processor, name, **KNOBS.get(name, {"rate": 2}))
    batch = inputs(processor, [(prompt(kind), [picture(1, 32, 24)])])
    positions, delta = model.model.get_rope_index(
        batch["input_ids"],
        batch["mm_token_type_ids"],
        batch["image_grid_thw"],
        attention_mask=batch["attention_mask"],
    )
    place = (batch["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    start, tokens = place[0].item(), positions[:, 0, place]
    if name == "qformer":  # no spatial order: as text
        assert torch.equal(tokens, torch.arange(start, start + 4).expand(3, -1)) and delta.item() == 0
    else:
        rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
        assert torch.equal(tokens - start, torch.stack([rows * 0, rows, columns]).flatten(1))
        assert positions[:, 0, place[-1] + 1].tolist() == [start + 4] * 3


def test_llava_without_its_cls_token():
    """A compressor reads patches, also where the model itself takes the CLS token along."""
    logits = []
    for strategy in ("default", "full"):
        model, processor = make_model("llava"), make_processor("llava")
        model.config.vision_feature_select_strategy = processor.vision_feature_select_strategy = strategy
        reuse.attach(model, processor, "identity")
        with torch.no_grad():
            logits.append(model(**inputs(processor, two_rows("llava"))).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", ["linear", "mlp2x_gelu"])
def test_new_projector(name):
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, **SAP, new_projector=name)
    assert model.slothkit.projector is not None
    batch = inputs(processor, two_rows("llava"))
    train_loss(model, batch).backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad is None
    assert all(p.grad.abs().sum() > 0 for p in model.slothkit.projector.parameters())


@over_families
def test_wrong_count_names_both_numbers(family):
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, [(prompt(family), [picture(1)])])
    reuse.attach(model, processor, **SAP)
    right = inputs(processor, [(prompt(family), [picture(1)])])
    old, new = ((b["input_ids"] == model.config.image_token_id).sum().item() for b in (batch, right))
    for call in (model, partial(model.generate, max_new_tokens=1)):
        with pytest.raises(UsageError, match=f"{old} image placeholders .* {new} visual tokens") as caught:
            call(**batch)
        assert "\n" not in str(caught.value) and old != new


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compressor": "sapp"}, "unknown compressor 'sapp'"),
        ({"compressor": "sap", "rat": 3}, "no knob 'rat'"),
        ({"compressor": "downsample"}, "shrinks the image"),
        ({"compressor": "sap", "query_knobs": {"dim": 8}}, "without a query_module"),
        ({"compressor": "sap", "dim": 8}, "compressor 'sap' has no knob 'dim'"),
        ({"compressor": "sap", "query_module": "embq", "query_knobs": {"at": 9, "dim": 8}}, "layers 1 to 3"),
        ({"compressor": "sap", "new_projector": "linearr"}, "unknown projector 'linearr'"),
        ({"compressor": "sap", "rate": 5}, "grid"),
        ({"compressor": "sap+embq"}, r'sap\+embq: .* compressor="sap", query_module="embq"$'),
        (
            {"compressor": "sap", "query_module": "embq", "num_queries": 4},
            r"num_queries=4: a knob of embq, .* give it in query_knobs=\{'num_queries': 4\}$",
        ),
        (
            {"compressor": "sap", "query_module": "embq", "embq.at": 1},
            r"embq.at=1: a knob of embq, .* give it in query_knobs=\{'at': 1\}$",
        ),
        (
            {"compressor": "sap", "query_module": "embq", "query_knobs": {"at": 9}},
            r"^query_knobs=\{'at': 9\}: embq.at=9: the LLM has decoder layers 1 to 3",
        ),
        ({"compressor": torch.nn.Linear}, "compressor=<class .*: give its name as text"),
        ({"compressor": "sap", "new_projector": torch.nn.Linear}, "projector=<class .* name as text"),
        ({"compressor": "sap", "query_module": torch.nn.Linear}, "query module=<class .* name as text"),
    ],
)
def test_bad_input_changes_nothing(options, message):
    model, processor = make_model("llava"), make_processor("llava")
    keys, names = list(model.state_dict()), set(vars(processor))
    with pytest.raises(UsageError, match=message) as caught:
        reuse.attach(model, processor, **options)
    assert "\n" not in str(caught.value)
    assert list(model.state_dict()) == keys and set(vars(processor)) == names
    with pytest.raises(UsageError, match="nothing is attached"):
        reuse.detach(model, processor)


@torch.no_grad()
def test_models_around_one_language_model():
    """One of them may have a query module: ids do not tell whose query tokens they are."""
    model, processor = attached("llava")
    other, other_processor = make_model("llava", 1), make_processor("llava")
    other.model.language_model, other.lm_head = model.model.language_model, model.lm_head
    batch = inputs(processor, two_rows("llava", marked=True))
    expected = model(**batch).logits
    with pytest.raises(UsageError, match="query_module=embq: .* that of another model, .* of its own"):
        reuse.attach(other, other_processor, **SAP, **EMBQ)
    assert not hasattr(other, "slothkit")
    reuse.attach(other, other_processor, **SAP)
    other_batch = inputs(other_processor, two_rows("llava"))
    other_expected = other(**other_batch).logits
    assert torch.equal(model(**batch).logits, expected)
    reuse.detach(model, processor)
    assert torch.equal(other(**other_batch).logits, other_expected)
    reuse.attach(model, processor, **SAP, **EMBQ)


@torch.no_grad()
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first", "last"])
def test_models_around_one_tower_are_detached_in_any_order(order):
    """Nothing of either stays at the tower and the projector that both have."""
    models = [make_model("llava"), make_model("llava", 1)]
    models[1].model.vision_tower = models[0].model.vision_tower
    models[1].model.multi_modal_projector = models[0].model.multi_modal_projector
    processors = [make_processor("llava"), make_processor("llava")]
    plain = inputs(processors[0], two_rows("llava"))
    expected = [model(**plain).logits for model in models]
    for number, tokens in enumerate((4, 6)):
        reuse.attach(models[number], processors[number], "divprune", tokens=tokens)
    last = order[1]
    batch = inputs(processors[last], two_rows("llava"))
    compressed = models[last](**batch).logits
    reuse.detach(models[order[0]], processors[order[0]])
    assert torch.equal(models[last](**batch).logits, compressed)
    reuse.detach(models[last], processors[last])
    for model, logits in zip(models, expected):
        assert torch.equal(model(**plain).logits, logits)
    assert "forward" not in vars(models[0].model.multi_modal_projector)


@torch.no_grad()
def test_a_query_module_acts_for_its_own_model_alone():
    model, _ = attached("llava")
    other, processor = attached("llava", 1)
    other.model.language_model = model.model.language_model
    called = []
    model.slothkit.query_module.register_forward_hook(lambda *_: called.append(True))
    with pytest.raises(UsageError, match="a query module cannot act there"):
        other(**inputs(processor, two_rows("llava", marked=True)))
    assert not called


def test_replicas_of_data_parallel_are_refused():
    """Their hooks are those of the model that they are made from."""
    model, processor = attached("llava")
    replica = model.model._replicate_for_data_parallel()
    with pytest.raises(UsageError, match=r"nn.DataParallel: .* with torchrun or accelerate launch"):
        replica(**inputs(processor, two_rows("llava", marked=True)))


def test_bad_models_texts_and_folders_are_refused(tmp_path):
    model, processor = attached("llava")
    with pytest.raises(UsageError, match="has a sap already"):
        reuse.attach(model, processor, "sap")
    with pytest.raises(UsageError, match="'dinov2'.* llava, llava_next"):
        reuse.attach(
            AutoModel.from_config(
                AutoConfig.for_model("dinov2", num_hidden_layers=1, hidden_size=8, num_attention_heads=1)
            ),
            processor,
            "sap",
        )
    for text in ("no markers <image>", f"<image>{QUERY}What?{QUESTION}", f"<image>{QUESTION}What?"):
        with pytest.raises(UsageError, match="one before and one after each question"):
            processor(text=[text], images=[picture()], return_tensors="pt")
    batch = inputs(processor, two_rows("llava", marked=True))
    with pieces_refused("prefill_chunk_size"):
        model.generate(**batch, max_new_tokens=2, prefill_chunk_size=16)
    make_model("llava").save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="not a model saved with a compressor"):
        reuse.load(tmp_path)


def test_a_model_of_the_project_s_own_kind_is_sent_to_its_own_load(tmp_path):
    """By the folder of its cell, of its stage and of its weights."""
    stage, cell = tmp_path / "finetune" / "1234", tmp_path / "cells" / "sap-1234"
    (stage / "model").mkdir(parents=True)
    (stage / "model" / "config.json").write_text('{"model_type": "slothkit"}')
    cell.mkdir(parents=True)
    (cell / "stages.json").write_text('["finetune/1234"]')
    for folder in (cell, stage, stage / "model"):
        with pytest.raises(UsageError) as caught:
            reuse.load(folder)
        own_load = f"slothkit.load('{folder}')"
        assert str(caught.value) == f"{folder}: a model of this project's own kind; load it with {own_load}"


def test_a_model_that_peft_has_wrapped():
    model, processor = make_model("llava"), make_processor("llava")
    tuned, names = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])), set(vars(processor))
    with pytest.raises(UsageError, match=r"PeftModel: give model\.get_base_model\(\)"):
        reuse.attach(tuned, processor, **SAP)
    assert set(vars(processor)) == names and not hasattr(model, "slothkit")
    reuse.attach(tuned.get_base_model(), processor, **SAP)
    assert answers(tuned, inputs(processor, two_rows("llava")))


def test_arguments_of_a_forward_whatever_its_rest_is_called():
    def forward(input_ids, use_cache=None, **lm_kwargs):
        """As Gemma 3's in some versions."""

    assert bind_arguments(forward, (1,), {"context": 2}) == {"input_ids": 1, "context": 2}
    assert bind_arguments(len, ([],), {}) == {"obj": []}


def test_placeholders_without_images():
    model, processor = attached("llava")
    batch = inputs(processor, two_rows("llava", marked=True))
    with pytest.raises(UsageError, match="the text has 8 image placeholders but no images came with it"):
        model(input_ids=batch["input_ids"])


def seen_by_compressor(family: str, levels: tuple[int, ...]) -> tuple[torch.nn.Module, torch.Tensor, int]:
    """The model, what its compressor was given, and the tower's width."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "token_packer", rate=3, levels=levels)
    seen = []
    model.slothkit.compressor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = inputs(processor, [(prompt(family), [picture(1)])])
    train_loss(model, batch).backward()
    return model, seen[0], 16


CONVOLUTIONAL = ("fast_vlm", "gemma3n")


@pytest.mark.parametrize(
    "family", family_params(*(name for name in reuse.FAMILIES if name not in CONVOLUTIONAL))
)
def test_levels_of_the_tower(family):
    model, features, dim = seen_by_compressor(family, (1, -1))
    assert features.shape[-1] == 3 * dim
    output, first, last = features.split(dim, -1)
    assert not torch.equal(first, last)
    if family in (
        "qwen2_vl",
        "qwen2_5_vl",
    ):  # in the order of the picture, whatever windows the tower works in
        torch.testing.assert_close(model.model.visual.merger.ln_q(last), output)
    with pytest.raises(UsageError, match="the tower has 3 blocks"):
        seen_by_compressor(family, (4,))


@pytest.mark.parametrize("family", family_params(*CONVOLUTIONAL))
def test_levels_of_a_convolutional_tower_are_refused(family):
    with pytest.raises(UsageError, match="levels: TimmWrapperModel is convolutional"):
        seen_by_compressor(family, (1,))


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_level_of_the_output(family):
    _, features, dim = seen_by_compressor(family, (-2,))
    assert torch.equal(*features.split(dim, -1))


NESTED = {"compressor": "matryoshka", "knobs": {"rate": 2}, "scales": (1, 2)}


@pytest.mark.parametrize(
    ("family", "query_module"), family_turns(reuse.FAMILIES, ["embq", "llava_mini"], one_in=2)
)
def test_pick_a_scale(family, query_module, tmp_path):
    """In the model and in its processor; saved, and undone."""
    queries = {"embq": EMBQ, "llava_mini": PREFUSION}[query_module]
    model, processor = make_model(family), make_processor(family)
    settings, rows = processor.to_json_string(), two_rows(family, marked=True)
    reuse.attach(model, processor, **NESTED, **queries)
    finest = inputs(processor, rows)
    reuse.pick(model, processor, 2)
    batch = inputs(processor, rows)
    counts = [(b["input_ids"] == model.config.image_token_id).sum(1) for b in (finest, batch)]
    assert (counts[1] < counts[0]).all() and answers(model, batch)
    assert torch.equal(inputs(copy.deepcopy(processor), rows)["input_ids"], batch["input_ids"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = reuse.load(tmp_path)
    assert torch.equal(inputs(again, rows)["input_ids"], batch["input_ids"])
    with torch.no_grad():
        assert_same(family, loaded(**batch).logits, model(**batch).logits)
        reuse.pick(loaded, again, 1)
        reuse.pick(model, processor, 1)
        assert torch.equal(inputs(again, rows)["input_ids"], finest["input_ids"])
        assert_same(family, loaded(**finest).logits, model(**finest).logits)
    reuse.pick(model, processor, 2)
    reuse.detach(model, processor)
    assert processor.to_json_string() == settings and not hasattr(model.config, "slothkit")
    plain = inputs(processor, two_rows(family))
    with torch.no_grad():
        assert_same(family, model(**plain).logits, make_model(family)(**plain).logits)


def test_a_scale_that_is_not_there_is_refused():
    model, processor = make_model("llava"), make_processor("llava")
    with pytest.raises(UsageError, match="nothing is attached to this model"):
        reuse.pick(model, processor, 2)
    reuse.attach(model, processor, **NESTED)
    with pytest.raises(UsageError, match="nothing is attached to this processor"):
        reuse.pick(model, make_processor("llava"), 2)
    with pytest.raises(UsageError, match="scale=3: choose one of 1, 2"):
        reuse.pick(model, processor, 3)
    assert answers(model, inputs(processor, two_rows("llava"))) and "scale" not in model.config.slothkit
    model.slothkit.compressor.train().drawn = 2
    with pytest.raises(UsageError, match=r"choose it by reuse\.pick\(model, processor, scale\)"):
        model(**inputs(processor, two_rows("llava")))
    reuse.pick(model, processor, 2)
    assert answers(model, inputs(processor, two_rows("llava")))
    reuse.detach(model, processor)
    reuse.attach(model, processor, **SAP)
    with pytest.raises(UsageError, match="sap is trained at one token count only"):
        reuse.pick(model, processor, 2)


@pytest.mark.parametrize("action", [reuse.detach, lambda *pair: reuse.pick(*pair, 2)], ids=["detach", "pick"])
def test_another_models_processor_is_refused_before_anything_changes(action):
    pairs = []
    for seed in (0, 1):
        model, processor = make_model("llava", seed), make_processor("llava")
        reuse.attach(model, processor, **NESTED)
        pairs.append((model, processor))
    (model, processor), (_, swapped) = pairs
    batch = inputs(processor, two_rows("llava"))
    before = answers(model, batch)
    with pytest.raises(UsageError, match="the processor belongs to another model"):
        action(model, swapped)
    with pytest.raises(UsageError, match="nothing is attached to this processor"):
        action(model, make_processor("llava"))
    assert answers(model, inputs(processor, two_rows("llava"))) == before
    copies = copy.deepcopy((model, processor))
    action(*copies)  # a copy of both is a pair still
    action(model, processor)


def test_picture_sizes_that_a_rate_refuses_are_told_as_it_is_attached():
    with pytest.warns(UserWarning, match=r"'avg_pool' refuses pictures of some sizes: .* give grid_policy="):
        reuse.attach(make_model("qwen2_vl"), make_processor("qwen2_vl"), "avg_pool", rate=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", reuse.NeedsTraining)
        for knobs in ({"rate": 2}, {"rate": 3, "grid_policy": "ceil"}):
            reuse.attach(make_model("qwen2_vl"), make_processor("qwen2_vl"), "avg_pool", **knobs)
