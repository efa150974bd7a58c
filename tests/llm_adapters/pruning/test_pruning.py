"""Pruners drop what they say they drop: counts, schedules, and FastV against a slow one by its definition."""

import copy

import pytest
import torch
from factories import LLMS, picture
from pruning_cases import CASES, DEPTH, RECIPE, ROWS, TOKENS, build, inputs
from torch import Tensor, nn

from compressors.errors import UsageError
from connectors.versions import CACHE
from llm_adapters.adapter import decoder_layers
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.kept_positions import count_positions
from llm_adapters.modeling import FlashSlothForConditionalGeneration as Model
from llm_adapters.pruning import FastV, Pruner, PyramidDrop, SparseVLM, registry
from llm_adapters.pruning.base import RENAMED_METHODS
from llm_adapters.pruning.cuts import close_gaps

ONE = [([Turn(f"{IMAGE}\nWhat is this?")], [picture(1)])]


def lengths(model: nn.Module, batch: dict[str, Tensor]) -> list[int]:
    """Tokens in each decoder layer of a prefill, as the KV cache has them."""
    cache = model(**batch, use_cache=True)[CACHE]
    return [cache.get_seq_length(layer) for layer in range(DEPTH)]


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_each_layer_has_as_many_tokens_as_the_schedule_says(case):
    model, processor = build()
    batch = inputs(processor, ONE)
    whole = batch["input_ids"].shape[1]
    name, knobs = CASES[case]
    model.set_pruner(name, **knobs)
    found = [length - (whole - TOKENS) for length in lengths(model, batch)]
    assert found[0] == TOKENS > found[-1]
    assert (found[-1] == 0) == (name == "vtw")
    assert model.pruner.measured_visual_tokens() == sum(found) / DEPTH
    if "adaptive" in case:
        with pytest.raises(UsageError, match=f"{name}: how many"):
            model.pruner.tokens_by_layer(TOKENS)
    else:
        assert found == model.pruner.tokens_by_layer(TOKENS)
        assert model.pruner.average_visual_tokens(TOKENS) == sum(found) / DEPTH


@pytest.mark.parametrize("llm", LLMS)
@torch.no_grad()
def test_pruners_that_keep_all_tokens_change_no_logit(llm):
    model, processor = build(llm)
    batch = inputs(processor, ROWS)
    expected = model(**batch).logits
    for name in registry.names():
        if name == "vtw":  # keeps none
            continue
        knobs = {"recipe": (1.0,) * (DEPTH - 1)} if name == "fitprune" else {"ratio": 1.0}
        model.set_pruner(name, **knobs)
        assert torch.equal(model(**batch).logits, expected), name
    model.set_pruner("fastv")
    assert not torch.equal(model(**batch).logits, expected)
    model.set_pruner(None)
    assert torch.equal(model(**batch).logits, expected)
    assert all(not hasattr(m.config, "slothkit_original") for m in model.modules() if hasattr(m, "config"))


@pytest.mark.parametrize("other", ["fastv", "sparsevlm", "gprune"])
@torch.no_grad()
def test_models_around_one_llm_have_their_own_pruners(other):
    """The second one's hooks stand at the first one's layers, too, and score other layers, or rotate not."""
    first, processor = build("phi")
    batch = inputs(processor, ROWS)
    whole = first(**batch).logits
    second = Model(copy.deepcopy(first.config), first.vision_tower, first.language_model).eval()
    second_whole = second(**batch).logits
    first.set_pruner("fastv", layer=1)
    pruned = first(**batch).logits
    second.set_pruner(other)
    second_pruned = second(**batch).logits
    assert not torch.equal(second_pruned, second_whole)
    assert torch.equal(first(**batch).logits, pruned)
    second.set_pruner(None)
    assert torch.equal(first(**batch).logits, pruned)
    assert torch.equal(second(**batch).logits, second_whole)
    second.set_pruner(other)
    first.set_pruner(None)
    assert torch.equal(first(**batch).logits, whole)
    assert torch.equal(second(**batch).logits, second_pruned)
    second.set_pruner(None)
    assert all(not hasattr(m.config, "slothkit_original") for m in first.modules() if hasattr(m, "config"))
    assert not any("pruning_handles" in vars(layer) for layer in first.language_model.modules())


def test_positions_close_up_among_the_tokens_that_are_there():
    """Placeholders of patches that an image does not have (`scope` with a coverage) share the position of the
    token before them, so what moves up past some must not come to stand among them."""
    is_there = torch.rand(200, 40) < 0.7
    is_there[0] = True
    is_there[:, [0, -1]] = True
    is_dropped = is_there & (torch.rand(200, 40) < 0.4)
    is_dropped[:, -1] = False
    places = close_gaps(is_dropped, is_there)
    positions = count_positions(is_there.long())
    for row in range(len(is_there)):
        is_left = is_there[row] & ~is_dropped[row]
        found = positions[row][places[row][is_left]]
        last = int(positions[row, -1])
        assert found.tolist() == list(range(last - len(found) + 1, last + 1))
    # without such placeholders by as many places as tokens have gone behind it
    gone_behind = is_dropped[0].flip(0).cumsum(0).flip(0) - is_dropped[0].int()
    assert torch.equal(places[0], torch.arange(40) + gone_behind)


def slow_fastv(
    llm: nn.Module, embeds: Tensor, visual: Tensor, layer: int, left: int, renumber: bool
) -> Tensor:
    """Logits of the last token, layer by layer, from the paper's definition: behind `layer` decoder layers
    keep the `left` visual tokens that the last one attends to most in that layer, on average over heads."""
    attentions = llm(inputs_embeds=embeds, output_attentions=True).attentions[layer - 1]  # eager
    scores = attentions[0, :, -1].mean(0).masked_fill(~visual, -1)
    dropped = visual.clone()
    dropped[scores.topk(left).indices] = False
    decoder, hidden, positions = llm.get_decoder(), embeds, torch.arange(embeds.shape[1])[None]
    for number, each in enumerate(decoder_layers(llm)):
        if number == layer:
            hidden, positions = hidden[:, ~dropped], positions[:, ~dropped]
            positions = torch.arange(hidden.shape[1])[None] if renumber else positions
        size = hidden.shape[1]
        mask = torch.full((size, size), torch.finfo(torch.float32).min).triu(1)[None, None]
        out = each(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=decoder.rotary_emb(hidden, positions),
        )
        hidden = out[0] if isinstance(out, tuple) else out
    norm = getattr(decoder, "norm", None) or decoder.final_layernorm
    return llm.get_output_embeddings()(norm(hidden[:, -1]))


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("positions", ["keep", "renumber"])
@torch.no_grad()
def test_fastv_is_a_slow_one_by_its_definition(llm, positions):
    model, processor = build(llm, query_module=None)
    batch = inputs(processor, ONE)
    visual = batch["input_ids"][0] == processor.image_token_id
    features = model.get_image_features(batch["pixel_values"])
    embeds, *_ = model.embed_tokens(batch["input_ids"], features, batch["image_turn"], batch["turns"], None)
    whole = model(**batch).logits[0, -1]
    model.language_model.set_attn_implementation("eager")
    expected = {
        layer: slow_fastv(model.language_model, embeds, visual, layer, 9, positions == "renumber")[0]
        for layer in (1, 2, 3)
    }
    model.language_model.set_attn_implementation("sdpa")
    for layer, slow in expected.items():
        model.set_pruner("fastv", layer=layer, ratio=0.25, positions=positions)
        fast = model(**batch).logits[0, -1]
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(fast, whole, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_labels_turn_the_raters_into_what_answers_start_from():
    """A prompt with its answers ranks by the tokens before them, so their logits are those of the prompt."""
    model, processor = build()
    model.set_pruner("fastv", ratio=0.25)
    prompt = inputs(processor, ONE)
    length = prompt["input_ids"].shape[1]
    answered = {
        **prompt,
        "input_ids": torch.cat([prompt["input_ids"], torch.tensor([[20, 21, 22]])], 1),
        "attention_mask": torch.ones(1, length + 3),
    }
    answered["turns"] = nn.functional.pad(prompt["turns"], (0, 3))
    labels = torch.full((1, length + 3), -100)
    labels[:, length:] = answered["input_ids"][:, length:]
    expected = model(**prompt).logits[:, -1]
    torch.testing.assert_close(model(**answered, labels=labels).logits[:, length - 1], expected)
    assert not torch.allclose(model(**answered).logits[:, length - 1], expected)  # rated by the last of all


def test_layers_scale_with_the_depth_of_the_model():
    assert [FastV(depth).layers for depth in (2, 6, 32)] == [(1,), (1,), (2,)]
    assert [PyramidDrop(depth).layers for depth in (2, 6, 32)] == [(1,), (2, 3, 5), (8, 16, 24)]
    assert [SparseVLM(depth).layers for depth in (2, 6, 32)] == [(1,), (1, 2, 3), (3, 7, 16)]


def test_token_counts_by_hand():
    assert FastV(6, layer=2, ratio=0.5).tokens_by_layer(9) == [9, 9, 5, 5, 5, 5]
    assert PyramidDrop(8, ratio=0.5).tokens_by_layer(16) == [16, 16, 8, 8, 4, 4, 2, 2]
    assert registry.create("fitprune", llm_layers=DEPTH, recipe=RECIPE).tokens_by_layer(10) == [10, 8, 5, 2]


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("average", [0.4, 0.75])
def test_pruners_meet_on_an_average_number_of_tokens(name, average):
    pruner = registry.create(name, llm_layers=32, average=average)
    near = 576 / 64 if name == "vtw" else 1  # half a layer of all tokens
    assert pruner.average_visual_tokens(576) == pytest.approx(average * 576, abs=near)


@pytest.mark.parametrize(
    "name, knobs, message",
    [
        ("fastv", {"layer": 4}, "layers=.4.: behind which decoder layers .* from 1 to 3"),
        ("fastv", {"layer": 0}, "from 1 to 3"),
        ("fastv", {"ratio": 1.5}, "ratio=1.5: a share"),
        ("fastv", {"layer": 2, "average": 0.4}, "average=0.4: .* between 0.5 and 1"),
        ("fastv", {"positions": "move"}, "fastv.positions='move'"),
        ("fastv", {"uniform": 2.0}, "uniform=2.0: a share"),
        ("pyramid_drop", {"layers": [3, 2]}, "ascending"),
        ("sparsevlm", {"adaptive": 0.5, "average": 0.5}, "set one of them"),
        ("fitprune", {"recipe": [0.5]}, "recipe: 1 shares for 3 layers"),
        ("fitprune", {"recipe": []}, "recipe: 0 shares for 3 layers"),
        ("fitprune", {"recipe": [0.5, 0.6, 0.2]}, "none above the one before"),
        ("fitprune", {"samples": 0}, "samples=0"),
        ("fastvv", {}, "did you mean 'fastv'"),
        ("dart", {"visual_pivots": 0}, "visual_pivots=0: must be at least 1"),
        ("dart", {"text_pivots": -1}, "text_pivots=-1: must be at least 0"),
        ("gprune", {"similarity": 1.5}, "similarity=1.5: a cosine"),
        ("gprune", {"temperature": 0.0}, "temperature=0.0: must be more than 0"),
        ("gprune", {"steps": 0}, "steps=0: must be at least 1"),
        ("random_drop", {"seed": -1}, "seed=-1: must be at least 0"),
        ("vtw", {"layer": 4}, "layers=.4.: behind which decoder layers .* from 1 to 3"),
        ("vtw", {"layer": 2, "average": 0.5}, "vtw: layer=2 settles the average.* set one of them"),
        ("vtw", {"average": 0.1}, "average=0.1: .* between 0.25 and 0.75"),
    ],
)
def test_bad_knobs_of_pruners_are_refused(name, knobs, message):
    model, _ = build()
    with pytest.raises(UsageError, match=message):
        model.set_pruner(name, **knobs)
    assert model.pruner is None and model.config.pruner is None


@pytest.mark.parametrize(("old", "new"), RENAMED_METHODS.items())
def test_a_pruner_with_a_method_of_an_old_name_is_refused(old, new):
    """Nobody would call it: the pruner would do something else, in silence."""
    with pytest.raises(TypeError, match=f"Old.{old}: this method is called {new} now"):
        type("Old", (Pruner,), {old: lambda *_: None})
    mixin = type("Mixin", (), {old: lambda *_: None})
    with pytest.raises(TypeError, match=f"Old.{old}: this method is called {new} now"):
        type("Old", (mixin, Pruner), {})
    assert callable(getattr(Pruner, new))


def test_which_methods_of_the_contract_were_renamed():
    assert RENAMED_METHODS == {
        "choose": "choose_tokens",
        "raters": "select_raters",
        "targets": "count_kept_tokens",
    }
