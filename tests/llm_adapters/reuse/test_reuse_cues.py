"""Cues of a family's own tower: against its eager attention, and what has none."""

import copy
import warnings

import pytest
import torch
from reuse_families import (
    BUDGET,
    EMBQ,
    TRAINING_FREE,
    attach_training_free,
    attached_training_free,
    count_hooks,
    inputs,
    make_model,
    make_processor,
    over_cue_families,
    over_training_free,
    train_loss,
    two_rows,
)
from reuse_models import GRID, VISION

import compressors
from compressors.cues import parse_cue
from compressors.errors import UsageError
from connectors.towers.cues import compute_cue
from connectors.versions import switch_checkpointing
from llm_adapters import reuse
from llm_adapters.reuse.families.family import find_tower_blocks
from llm_adapters.reuse.parts import cues as tower_cues


def make_variant(attention="sdpa", **settings):
    """A LLaVA with other settings, and its processor."""
    model = make_model("llava")
    config = copy.deepcopy(model.config)
    vision = settings.pop("vision", {})
    for name, value in settings.items():
        setattr(config, name, value)
    if vision:
        config.vision_config = type(make_model("llava_onevision").config.vision_config)(**vision)
    config._attn_implementation = attention
    torch.manual_seed(1)
    processor = make_processor("llava")
    processor.vision_feature_select_strategy = config.vision_feature_select_strategy
    if "siglip" in config.vision_config.model_type:
        processor.num_additional_image_tokens = 0
    return type(model)(config).eval(), processor


VARIANTS = {
    "as_llava_1.5": {},
    "eager": {"attention": "eager"},
    "last_block": {"vision_feature_layer": -1},
    "counted_from_the_first": {"vision_feature_layer": 1},
    "with_cls_among_the_features": {"vision_feature_select_strategy": "full"},
    "siglip": {
        "vision": {**VISION, "vision_use_head": False},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
}


@torch.no_grad()
def read_by_hand(tower, pixels, layer, cues):
    """Features of hidden state `layer` and cues (n, H, W, channels), by the tower's own eager attention."""
    eager = copy.deepcopy(tower)
    eager.set_attn_implementation("eager")
    output = eager(pixels, output_hidden_states=True, output_attentions=True)
    count = len(output.attentions)
    has_cls = "clip" in tower.config.model_type
    own_number = layer if layer > 0 else count + 1 + layer
    states = output.hidden_states[own_number]
    channels = [states[:, has_cls:]]
    for text in cues:
        cue = parse_cue(text)
        number = cue.level or own_number
        attention = output.attentions[number - 1].mean(1)  # (n, T, T)
        if cue.kind == "keys":
            block = find_tower_blocks(eager)[number - 1]
            keys = block.self_attn.k_proj(block.layer_norm1(output.hidden_states[number - 1]))
            channels.append(keys.unflatten(-1, (VISION["num_attention_heads"], -1)).mean(2)[:, has_cls:])
        elif cue.kind == "cls":
            channels.append(states[:, :1].expand(-1, GRID * GRID, -1))
        elif cue.kind == "attention" and has_cls:
            channels.append(attention[:, 0, 1:, None])
        else:
            channels.append(attention.mean(1)[:, has_cls:, None])
    return torch.cat(channels, -1).unflatten(1, (GRID, GRID))


@over_training_free
@pytest.mark.parametrize("variant", VARIANTS)
def test_tokens_are_those_of_the_tower_s_features_and_cues(variant, part_name):
    """Of images one by one, by hand: tower, compressor, the model's own projector."""
    model, processor = make_variant(**VARIANTS[variant])
    name = part_name.removesuffix("_cls")
    if variant == "siglip" and part_name == "visionzip_cls":
        with pytest.raises(UsageError, match="visionzip.*cue 'cls': a siglip_vision_model tower has no CLS"):
            attach_training_free(model, processor, part_name)
        return
    attach_training_free(model, processor, part_name)
    batch = inputs(processor, two_rows("llava"))
    with torch.no_grad():
        found = model.get_image_features(batch["pixel_values"]).pooler_output
    base = model.model
    part = compressors.create(
        name, dim=VISION["hidden_size"], tokens=BUDGET, **TRAINING_FREE[part_name]
    ).eval()
    for number, pixels in enumerate(batch["pixel_values"]):
        features = read_by_hand(
            base.vision_tower, pixels[None], model.config.vision_feature_layer, part.needs_cues
        )
        with torch.no_grad():
            expected = base.multi_modal_projector(part(features))[0]
        torch.testing.assert_close(found[number], expected, atol=1e-4, rtol=1e-4)
    assert model.slothkit.projector is None and not list(model.slothkit.parameters())


@over_cue_families
def test_cues_belong_to_their_patches_in_every_family(family):
    """What the compressor gets: crop by crop, whatever the family does to them before its projector."""
    seen = {}
    model, processor = attached_training_free(family, "visionzip")
    tower = model.base_model.get_submodule(reuse.FAMILIES[family].tower)
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: seen.update(pixels=kwargs.get("pixel_values", *args)), with_kwargs=True
    )
    model.slothkit.compressor.register_forward_pre_hook(lambda _, args: seen.update(features=args[0]))
    with torch.no_grad():
        model(**inputs(processor, two_rows(family)))
    layer = reuse.FAMILIES[family].feature_layer(model.base_model)
    expected = read_by_hand(tower, seen["pixels"], layer, ("attention", "keys"))
    dim = VISION["hidden_size"]  # the features themselves have gone through a final norm in some
    torch.testing.assert_close(seen["features"][..., dim:], expected[..., dim:], atol=1e-5, rtol=1e-4)
    assert len(seen["features"]) >= 2 and len(seen["features"]) == len(seen["pixels"])


@over_cue_families
@pytest.mark.parametrize("queries", [{}, EMBQ], ids=["alone", "embq"])
def test_cues_of_a_model_in_half_precision_stay_in_float32(family, queries, monkeypatch):
    """Up to the compressor; tokens that leave it, and a query module's patches, are in the model's type."""
    computed = []

    def note_cue(cue, *states):
        computed.append(compute_cue(cue, *states))
        return computed[-1]

    monkeypatch.setattr(tower_cues, "compute_cue", note_cue)
    model, processor = make_model(family).bfloat16(), make_processor(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", reuse.NeedsTraining)
        reuse.attach(model, processor, "visionzip", tokens=BUDGET, **queries)
    seen = []
    model.slothkit.compressor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    batch = inputs(processor, two_rows(family, marked=bool(queries)))
    batch["pixel_values"] = batch["pixel_values"].bfloat16()
    with torch.no_grad():
        assert model(**batch).logits.dtype == torch.bfloat16
    expected = torch.cat(computed, -1).flatten(0, 1)  # attention and keys of all patches
    dim = VISION["hidden_size"]
    assert torch.equal(seen[0][..., dim:].flatten(0, 2), expected)
    assert not torch.equal(expected, expected.bfloat16().float())
    assert torch.equal(seen[0][..., :dim], seen[0][..., :dim].bfloat16().float())


def test_only_the_blocks_that_are_asked_compute_attention_again():
    calls = []
    for part_name, blocks in (("divprune", []), ("vispruner", [2]), ("hiprune", [1, 2])):
        model, processor = attached_training_free("llava", part_name)
        for number, block in enumerate(find_tower_blocks(model.model.vision_tower), 1):
            block.self_attn.q_proj.register_forward_hook(lambda *_, number=number: calls.append(number))
        calls.clear()
        with torch.no_grad():
            model(**inputs(processor, two_rows("llava")))
        again = sorted({number for number in calls if calls.count(number) > 1})
        assert again == blocks and set(calls) == {1, 2, 3}


def test_nothing_of_an_image_is_kept():
    model, processor = attached_training_free("llava", "visionzip")
    batch = inputs(processor, two_rows("llava"))
    with torch.no_grad():
        model(**batch)
        hooks = count_hooks(model)
        model(**batch)
    assert model.slothkit.cue_reader._states is None
    assert count_hooks(model) == hooks


def test_a_copy_reads_its_own_tower():
    model, processor = attached_training_free("llava", "vispruner")
    twin = copy.deepcopy(model)
    batch = inputs(processor, two_rows("llava"))
    with torch.no_grad():
        before = model.get_image_features(batch["pixel_values"]).pooler_output
        assert torch.equal(twin.get_image_features(batch["pixel_values"]).pooler_output[0], before[0])
        for block in find_tower_blocks(model.model.vision_tower):
            torch.nn.init.normal_(block.self_attn.k_proj.weight)
        assert torch.equal(twin.get_image_features(batch["pixel_values"]).pooler_output[0], before[0])
        assert not torch.equal(model.get_image_features(batch["pixel_values"]).pooler_output[0], before[0])


def test_gradients_reach_the_tower_with_checkpointing_too():
    gradients = []
    for checkpointing in (False, True):
        model, processor = attached_training_free("llava", "visionzip")
        model.train()
        if checkpointing:
            switch_checkpointing(model, "enable", {"use_reentrant": False})
        train_loss(model, inputs(processor, two_rows("llava"))).backward()
        gradients.append(find_tower_blocks(model.model.vision_tower)[0].self_attn.v_proj.weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_query_module_reads_features_without_cues():
    """Beside a compressor of cues, EmbQ sees the tower's channels alone."""
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(
        model,
        processor,
        "visionzip",
        tokens=BUDGET,
        query_module="embq",
        query_knobs={"at": 2, "dim": 8, "num_queries": 3},
    )
    seen = []
    model.slothkit.query_module.register_forward_pre_hook(lambda _, args: seen.append(args[3]))
    with torch.no_grad():
        model(**inputs(processor, two_rows("llava", marked=True)))
    assert seen[0].shape[1:] == (GRID * GRID, VISION["hidden_size"])


@pytest.mark.parametrize(
    ("family", "tower"),
    [
        ("internvl", "internvl_vision"),
        ("qwen2_vl", "qwen2_vl"),
        ("pixtral", "pixtral"),
        ("idefics3", "idefics3"),
    ],
)
def test_other_towers_are_refused_by_name(family, tower):
    model, processor = make_model(family), make_processor(family)
    with pytest.raises(UsageError, match=f"'visionzip' asks the vision tower for attention, keys.*'{tower}"):
        reuse.attach(model, processor, "visionzip", tokens=4)
    assert not hasattr(model, "slothkit") and not hasattr(processor, "attached")


def test_a_family_that_does_not_say_its_layer_is_refused():
    """InternVL's class with a SigLIP in it."""
    model, processor = make_model("internvl"), make_processor("internvl")
    model.model.vision_tower = make_model("paligemma").model.vision_tower
    with pytest.raises(UsageError, match="'internvl' nothing says which hidden state"):
        reuse.attach(model, processor, "visionzip", tokens=4)


@pytest.mark.parametrize(
    ("layer", "line"),
    [
        ([-2, -1], r"of one block, but the features are those of 2, vision_feature_layer=\[-2, -1\]"),
        (0, "vision_feature_layer=0: the tower has 3 blocks; choose"),
    ],
)
def test_features_of_no_one_block_are_refused(layer, line):
    model, processor = make_variant(vision_feature_layer=layer)
    with pytest.raises(UsageError, match=line):
        reuse.attach(model, processor, "visionzip", tokens=4)
    assert not hasattr(model, "slothkit")


@torch.no_grad()
def test_features_of_another_block_than_the_cues_are_refused():
    """As a forward and `generate` may be asked for; without cues a compressor takes those of any block."""
    model, processor = make_model("llava"), make_processor("llava")
    attach_training_free(model, processor, "visionzip")
    batch = inputs(processor, two_rows("llava"))
    own = model.config.vision_feature_layer
    expected = model(**batch).logits
    assert torch.equal(model(**batch, vision_feature_layer=own).logits, expected)
    for call in (model, model.generate):
        with pytest.raises(
            UsageError, match=f"vision_feature_layer=1: .* vision_feature_layer={own} as it was"
        ):
            call(**batch, vision_feature_layer=1)
    reuse.detach(model, processor)
    attach_training_free(model, processor, "divprune")
    assert not torch.equal(model(**batch, vision_feature_layer=1).logits, model(**batch).logits)


def test_a_block_that_the_tower_lacks_is_refused():
    model, processor = make_model("llava"), make_processor("llava")
    with pytest.raises(UsageError, match=r"^block=9 \(cue 'received:9'\): the tower has 3 blocks; choose -3"):
        reuse.attach(model, processor, "hiprune", tokens=4, block=9)
    assert not hasattr(model, "slothkit")
