"""Pre-fusion on plain tensors: transformers' own layers give the same, and who reads whom."""

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from compressors.errors import UsageError
from connectors.llava_mini import LlavaMini
from connectors.query_module import list_insertions, registry

D, C, P, T = 16, 12, 9, 24
SIZES = {"llm_dim": D, "vision_dim": C, "llm_heads": 4, "llm_layers": 3}
# Two turns in 24 tokens: image 1 at 1 2, question 1 at 3..6, its queries at 7 8, its answer at 9 10; image 2
# at 12 13, question 2 at 14..17, its queries at 18 19, its answer behind.
IMAGES = ((1, 2), (12, 13))
QUESTIONS = ((3, 4, 5, 6), (14, 15, 16, 17))
QUERIES = ((7, 8), (18, 19))
FUSED = [*IMAGES[0], *QUESTIONS[0], *QUERIES[0], *IMAGES[1], *QUESTIONS[1], *QUERIES[1]]


def build(**knobs) -> LlavaMini:
    torch.manual_seed(0)
    module = registry.create("llava_mini", **SIZES, **{"num_layers": 2, "num_queries": 2, **knobs})
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.eval()


def inputs(turns: int = 2) -> dict[str, Tensor]:
    """A row of two turns, each with an image; with `turns=1` the second has not been asked yet."""
    generator = torch.Generator().manual_seed(3)
    question = torch.zeros(1, 2 * turns, T, dtype=torch.bool)
    visual = torch.zeros(1, 2 * turns, T, dtype=torch.bool)
    patches = torch.zeros(1, 2 * turns, turns * P, dtype=torch.bool)
    for turn in range(turns):
        slots = slice(2 * turn, 2 * turn + 2)
        question[:, slots, QUESTIONS[turn]] = True
        for earlier in range(turn + 1):
            visual[:, slots, IMAGES[earlier]] = True
        patches[:, slots, : P * (turn + 1)] = True
    return {
        "hidden": torch.randn(1, T, D, generator=generator),
        "query_index": torch.tensor([sum(QUERIES[:turns], ())]),
        "question_mask": question,
        "features": torch.randn(1, 2 * P, C, generator=generator)[:, : turns * P],
        "feature_mask": patches,
        "visual_mask": visual,
    }


def fuse_by_transformers(module: LlavaMini, features: Tensor, hidden: Tensor) -> Tensor:
    """[projected patches (P, D), tokens (N, D)] through a causal stack of transformers' Llama layers with the
    module's weights; the tokens (N, D)."""
    layer = module.layers[0]
    config = LlamaConfig(
        hidden_size=D,
        intermediate_size=layer.mlp.gate.out_features,
        num_hidden_layers=len(module.layers),
        num_attention_heads=layer.heads,
        num_key_value_heads=layer.heads,
        rms_norm_eps=1e-5,
        vocab_size=1,
        attn_implementation="eager",
    )
    llama = LlamaModel(config).eval()
    llama.norm = nn.Identity()
    for ours, theirs in zip(module.layers, llama.layers):
        names = {"q_proj": ours.query, "k_proj": ours.key, "v_proj": ours.value, "o_proj": ours.out}
        for name, linear in names.items():
            getattr(theirs.self_attn, name).load_state_dict(linear.state_dict())
        for name in ("gate", "up", "down"):
            getattr(theirs.mlp, f"{name}_proj").load_state_dict(getattr(ours.mlp, name).state_dict())
        theirs.input_layernorm.load_state_dict(ours.attention_norm.state_dict())
        theirs.post_attention_layernorm.load_state_dict(ours.mlp_norm.state_dict())
    row = torch.cat([module.project(features), hidden]).unsqueeze(0)
    return llama(inputs_embeds=row).last_hidden_state[0, len(features) :]


@torch.no_grad()
def test_one_turn_is_a_causal_stack_of_llama_layers():
    module, given = build(num_queries=1), inputs(turns=1)
    given["query_index"] = given["query_index"][:, :1]
    for name in ("question_mask", "feature_mask", "visual_mask"):
        given[name] = given[name][:, :1]
    places = [*IMAGES[0], *QUESTIONS[0], QUERIES[0][0]]
    out = module(**given)
    expected = fuse_by_transformers(module, given["features"][0], given["hidden"][0, places])
    torch.testing.assert_close(out[0, places], expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_visual_tokens_and_questions_change_and_answers_stay():
    module, given = build(), inputs()
    changed = (module(**given) != given["hidden"]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == FUSED


@torch.no_grad()
def test_a_later_turn_changes_no_earlier_one():
    """The whole conversation is read anew at each turn; what was said must stay what it was."""
    module = build()
    first, both = inputs(turns=1), inputs()
    early = [*IMAGES[0], *QUESTIONS[0], *QUERIES[0]]
    torch.testing.assert_close(module(**both)[:, early], module(**first)[:, early], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_on_the_left_moves_nothing():
    module, given = build(), inputs()
    padded = dict(given)
    for name in ("question_mask", "visual_mask"):
        padded[name] = nn.functional.pad(given[name], (5, 0))
    padded["hidden"] = nn.functional.pad(given["hidden"], (0, 0, 5, 0), value=7.0)
    padded["query_index"] = given["query_index"] + 5
    torch.testing.assert_close(module(**padded)[:, 5:], module(**given), atol=1e-5, rtol=1e-5)
    assert (module(**padded)[:, :5] == 7).all()


@torch.no_grad()
def test_rows_with_fewer_images_or_none_beside_others():
    module = build()
    both, first = inputs(), inputs(turns=1)
    fill = {
        "query_index": nn.functional.pad(first["query_index"], (0, 2), value=-1),
        "features": nn.functional.pad(first["features"], (0, 0, 0, P), value=torch.nan),
        "feature_mask": nn.functional.pad(first["feature_mask"], (0, P, 0, 2)),
        "hidden": first["hidden"],
    }
    for name in ("question_mask", "visual_mask"):
        fill[name] = nn.functional.pad(first[name], (0, 0, 0, 2))
    blank = {**fill, "feature_mask": torch.zeros_like(fill["feature_mask"])}
    batch = {name: torch.cat([both[name], fill[name], blank[name]]) for name in both}
    out = module(**batch)
    torch.testing.assert_close(out[:1], module(**both), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[1:2], module(**first), atol=1e-5, rtol=1e-5)
    assert torch.equal(out[2], blank["hidden"][0])


@torch.no_grad()
@pytest.mark.parametrize(
    ("place", "readers"),
    [
        (IMAGES[0][0], {*FUSED}),
        (QUESTIONS[0][1], {*QUESTIONS[0][1:], *QUERIES[0]}),
        (QUERIES[0][0], {QUERIES[0][0]}),
        (IMAGES[1][1], {IMAGES[1][1], *QUESTIONS[1], *QUERIES[1]}),
        (10, set()),  # an answer
    ],
)
def test_who_reads_a_token(place, readers):
    module, given = build(), inputs()
    moved = {**given, "hidden": given["hidden"].clone()}
    moved["hidden"][:, place] += 1
    difference = (module(**moved) - module(**given)).abs().amax(-1)[0] > 1e-6
    difference[place] = difference[place] and place in FUSED
    assert set(difference.nonzero().flatten().tolist()) == readers


@torch.no_grad()
@pytest.mark.parametrize("image", [0, 1])
def test_who_reads_a_patch(image):
    module, given = build(), inputs()
    moved = {**given, "features": given["features"].clone()}
    moved["features"][:, image * P] += 1
    difference = (module(**moved) - module(**given)).abs().amax(-1)[0] > 1e-6
    expected = FUSED if image == 0 else [*IMAGES[1], *QUESTIONS[1], *QUERIES[1]]
    assert difference.nonzero().flatten().tolist() == expected


def test_gradients_are_right_and_nothing_is_written_in_place():
    module, given = build().double(), inputs()
    rest = {name: value for name, value in given.items() if name not in ("hidden", "features")}
    hidden, features = (given[name].double().requires_grad_() for name in ("hidden", "features"))
    before = hidden.detach().clone()
    assert torch.autograd.gradcheck(
        lambda h, f: module(hidden=h, features=f, **rest), (hidden, features), atol=1e-3, rtol=1e-3
    )
    assert torch.equal(hidden.detach(), before)


def test_a_new_one_leaves_the_llm_s_embeddings_nearly_as_they_are():
    module, given = registry.create("llava_mini", **{**SIZES, "llm_dim": 256, "llm_heads": 8}), inputs()
    given["hidden"] = torch.randn(1, T, 256)
    change = module(**given) - given["hidden"]
    assert 0 < change.norm() < 0.5 * given["hidden"].norm()
    dot = torch.randn(256)
    module.initialise(dot)
    assert (module.tokens - dot).abs().max() < 0.1


def test_it_acts_before_the_first_layer():
    module = build()
    assert module.prefuses and list(list_insertions(module)) == [(0, 0)]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"num_queries": 0}, "llava_mini.num_queries=0"),
        ({"num_layers": 0}, "llava_mini.num_layers=0"),
        ({"heads": 3}, "llava_mini.heads=3"),
        ({"heads": 16}, "even number of channels"),
        ({"at": 2}, "has no knob 'at'"),
    ],
)
def test_what_cannot_be_is_refused(knobs, message):
    with pytest.raises(UsageError, match=message):
        build(**knobs)
