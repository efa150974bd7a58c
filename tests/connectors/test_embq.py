"""EmbQ and fusion on plain tensors: what each query may read, what is written, and what is refused."""

import pytest
import torch
from torch import Tensor, nn

from compressors.errors import UsageError
from connectors.embq import EmbQ
from connectors.fusion import Fusion
from connectors.query_module import list_insertions, put_at_positions, registry, take_at_positions

D, C, T, Q, P = 16, 12, 20, 2, 9
SIZES = {"llm_dim": D, "vision_dim": C, "llm_heads": 4, "llm_layers": 3}
# Two turns in 20 tokens: question 1 at 3..6, its queries at 7 8; question 2 at 12..14, its queries at 15 16.
INDEX = torch.tensor([[7, 8, 15, 16]])
QUESTIONS = (range(3, 7), range(12, 15))


def embq(**knobs) -> EmbQ:
    module = registry.create("embq", **SIZES, **{"dim": 8, "at": 2, "num_queries": Q, **knobs})
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def masks(patches: int = P, images: int = 1) -> tuple[Tensor, Tensor]:
    """Question mask (1, S, T) and feature mask (1, S, P): image i stands in turn i + 1."""
    question = torch.zeros(1, 4, T, dtype=torch.bool)
    features = torch.zeros(1, 4, patches * images, dtype=torch.bool)
    for turn, span in enumerate(QUESTIONS):
        question[:, 2 * turn : 2 * turn + 2, span] = True
        features[:, 2 * turn : 2 * turn + 2, : patches * min(turn + 1, images)] = True
    return question, features


def inputs(images: int = 1) -> dict[str, Tensor]:
    question, feature = masks(images=images)
    return {
        "hidden": torch.randn(1, T, D),
        "query_index": INDEX,
        "question_mask": question,
        "features": torch.randn(1, images * P, C),
        "feature_mask": feature,
    }


def attend(attention: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Multi-head attention of one query (d,) written as loops."""
    pieces = attention.q_proj(query), attention.k_proj(key), attention.v_proj(value)
    heads = zip(*(piece.chunk(4, -1) for piece in pieces))
    return torch.cat([torch.softmax(k @ q / len(q) ** 0.5, 0) @ v for q, k, v in heads])


def update(block: nn.Module, layer: nn.Module, query: Tensor, question: Tensor, patches: Tensor) -> Tensor:
    """What one query (D,) receives, line by line from the paper."""
    q0, t0, v0 = block.down_text(query), block.down_text(question), block.down_image(patches)
    a = attend(layer.t2q_attn, layer.ln_q(q0), layer.ln_text(t0), layer.ln_text(t0))
    return block.up(attend(layer.i2q_attn, a, layer.ln_kv(v0), patches))


@pytest.mark.parametrize("images", [1, 2])
def test_one_masked_call_is_the_formula_for_each_query(images):
    module, given = embq(), inputs(images)
    out, (block,) = module(**given), module.blocks
    expected = given["hidden"].clone()
    for turn, span in enumerate(QUESTIONS):
        seen = given["features"][0, : P * min(turn + 1, images)]  # images up to this turn
        for position in INDEX[0, 2 * turn : 2 * turn + 2]:
            query, question = given["hidden"][0, position], given["hidden"][0, list(span)]
            expected[0, position] += update(block, block.layers[0], query, question, seen)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_one_call_for_all_turns_is_one_call_a_turn():
    module, given = embq(), inputs(images=2)
    together, apart = module(**given), given["hidden"]
    for turn in range(2):
        mine = slice(2 * turn, 2 * turn + 2)
        apart = module(
            apart,
            INDEX[:, mine],
            given["question_mask"][:, mine],
            given["features"],
            given["feature_mask"][:, mine],
        )
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=0)


def test_first_turn_does_not_see_the_second_turns_image_nor_question():
    module, given = embq(), inputs(images=2)
    before = module(**given)
    given["features"] = given["features"].clone()
    given["features"][:, P:] += 1
    after = module(**given)
    torch.testing.assert_close(after[:, [7, 8]], before[:, [7, 8]], atol=0, rtol=0)
    assert not torch.allclose(after[:, [15, 16]], before[:, [15, 16]])
    other = {**given, "hidden": given["hidden"].clone()}
    other["hidden"][:, 12:15] += 1
    torch.testing.assert_close(module(**other)[:, [7, 8]], after[:, [7, 8]], atol=0, rtol=0)


def test_only_query_positions_change():
    given = inputs()
    changed = (embq()(**given) != given["hidden"]).any(-1)[0]
    assert changed.nonzero().flatten().tolist() == INDEX[0].tolist()


def test_order_of_patches_does_not_matter():
    module, given = embq(), inputs()
    shuffled = {**given, "features": given["features"][:, torch.randperm(P)]}
    torch.testing.assert_close(module(**given), module(**shuffled), atol=1e-5, rtol=1e-5)


def test_fill_slots_do_nothing():
    module, given = embq(), inputs()
    expected = module(**given)
    fill = {
        "query_index": torch.tensor([[7, 8, -1, 15, 16, -1]]),
        **{name: given[name][:, [0, 1, 0, 2, 3, 0]].clone() for name in ("question_mask", "feature_mask")},
    }
    torch.testing.assert_close(module(**{**given, **fill}), expected, atol=1e-6, rtol=0)
    nowhere = {**given, "query_index": torch.full((1, 4), -1)}
    assert torch.equal(module(**nowhere), given["hidden"])


@pytest.mark.parametrize("blank", ["question_mask", "feature_mask"])
def test_query_that_may_read_nothing_is_left_alone(blank):
    module, given = embq(), inputs()
    given[blank] = given[blank].clone()
    given[blank][:, 2:] = False
    out = module(**given)
    assert torch.equal(out[:, 9:], given["hidden"][:, 9:])
    assert not torch.equal(out[:, 7:9], given["hidden"][:, 7:9])
    assert out.isfinite().all()


def test_text_only_row_survives_garbage():
    module, given = embq(), inputs()
    batch = {name: torch.cat([value, value]) for name, value in given.items()}
    batch["features"][1] = torch.nan
    batch["feature_mask"][1] = False
    out = module(**batch)
    assert torch.equal(out[1], given["hidden"][0])
    # a batch of another size may be summed in another order
    torch.testing.assert_close(out[:1], module(**given))


def test_patches_that_nothing_reads_may_be_anything():
    module, given = embq(), inputs(images=2)
    given["feature_mask"][:, :, P:] = False
    expected = module(**given)
    gradients = torch.autograd.grad(expected.sum(), module.blocks.parameters())
    given["features"][:, P:] = torch.nan
    out = module(**given)
    assert torch.equal(out, expected)
    assert all(map(torch.equal, torch.autograd.grad(out.sum(), module.blocks.parameters()), gradients))


def test_out_of_place():
    module, given = embq(), inputs()
    hidden = given["hidden"].clone()
    with torch.no_grad():
        module(**given)
    assert torch.equal(given["hidden"], hidden)
    given["hidden"].requires_grad_()
    out = module(**given)  # a leaf that requires grad would refuse an in-place write
    out.square().sum().backward()
    assert torch.equal(given["hidden"].detach(), hidden)
    assert given["hidden"].grad.abs().sum(-1).min() > 0


def test_gradients_are_right():
    module, given = embq(fusion="gated", num_layers=2, stacked=True).double(), inputs(images=2)
    hidden, features = (given[name].double().requires_grad_() for name in ("hidden", "features"))
    rest = (given["query_index"], given["question_mask"])
    run = lambda h, f: module(h, *rest, f, given["feature_mask"])  # noqa: E731
    assert torch.autograd.gradcheck(run, (hidden, features))


@pytest.mark.parametrize("name", ["replace", "add", "gated"])
def test_fusion_formulas(name):
    fusion, queries, new = Fusion(D, name), torch.randn(2, 3, D), torch.randn(2, 3, D)
    if name == "gated":
        torch.testing.assert_close(fusion(queries, new), queries + 0.5 * new)  # a new gate is half open
        nn.init.normal_(fusion.gate.weight)
        nn.init.normal_(fusion.gate.bias)
        gate = torch.sigmoid(torch.cat([queries, new], -1) @ fusion.gate.weight.T + fusion.gate.bias)
        assert gate.shape == (2, 3, 1)
        torch.testing.assert_close(fusion(queries, new), queries + gate * new)
    else:
        torch.testing.assert_close(fusion(queries, new), new if name == "replace" else queries + new)


@pytest.mark.parametrize("fusion", ["replace", "add", "gated"])
def test_parallel_layers_add_up_and_stacked_ones_follow_one_another(fusion):
    torch.manual_seed(1)
    parallel = embq(num_layers=2, fusion=fusion)
    stacked = embq(num_layers=2, fusion=fusion, stacked=True)
    stacked.load_state_dict(parallel.state_dict())
    given, (block,) = inputs(), parallel.blocks
    query, question = given["hidden"][0, 7], given["hidden"][0, 3:7]
    first, second = (update(block, layer, query, question, given["features"][0]) for layer in block.layers)
    expected = block.fusion(query, first + second)
    torch.testing.assert_close(parallel(**given)[0, 7], expected, atol=1e-4, rtol=1e-5)
    between = block.fusion(query, first)
    expected = block.fusion(between, update(block, block.layers[1], between, question, given["features"][0]))
    torch.testing.assert_close(stacked(**given)[0, 7], expected, atol=1e-4, rtol=1e-5)


def test_released_is_the_plain_module_in_float32():
    plain, released = embq(num_layers=2), embq(num_layers=2, released=True)
    released.load_state_dict(plain.state_dict())
    given = inputs()
    torch.testing.assert_close(released(**given), plain(**given))


def test_released_runs_without_memory():
    given = {name: value.to("meta") for name, value in inputs().items()}
    assert embq(released=True).to("meta")(**given).shape == (1, T, D)


def test_dot_and_random_start():
    dot = torch.randn(D)
    torch.manual_seed(3)
    random = registry.create("embq", **SIZES, dim=8, at=2, init="random")
    noise = random.tokens.detach().clone()
    torch.manual_seed(3)
    module = registry.create("embq", **SIZES, dim=8, at=2, init="dot")
    for m in (random, module):
        m.initialise(dot)
    assert torch.equal(random.tokens, noise)
    torch.testing.assert_close(module.tokens.detach(), noise + dot)
    assert len(module.tokens.unique(dim=0)) == module.num_queries == 9  # equal queries would stay equal


def test_several_insertions_have_weights_of_their_own():
    module = embq(at=(3, 1, 3))
    assert module.at == (1, 3)
    assert list(list_insertions(module)) == [(0, 0), (1, 2)]
    assert len(module.blocks) == 2
    given = inputs()
    assert not torch.allclose(module(**given), module(**given, insertion=1))


def test_sizes_of_the_paper():
    with torch.device("meta"):
        module = registry.create("embq", llm_dim=2560, vision_dim=1152, llm_heads=32, llm_layers=32)
    count = sum(p.numel() for p in module.blocks.parameters())
    assert (count, module.tokens.numel(), module.at) == (8_084_416, 9 * 2560, (8,))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"at": 4}, r"embq\.at=4: the LLM has decoder layers 1 to 3"),
        ({"at": 0}, r"embq\.at=0: the LLM has decoder layers 1 to 3"),
        ({"at": (2, 9)}, r"embq\.at=9: "),
        ({"at": ()}, r"embq\.at=\(\): give at least one"),
        ({"dim": 10}, r"embq\.heads=4 does not divide embq\.dim=10"),
        ({"heads": 8}, r"embq\.heads=8 does not divide the tower's width=12"),
        ({"heads": 0}, r"embq\.heads=0: must be at least 1"),
        ({"dim": 0}, r"embq\.dim=0: must be at least 1"),
        ({"num_queries": 0}, r"embq\.num_queries=0: must be at least 1"),
        ({"num_layers": -1}, r"embq\.num_layers=-1: must be at least 1"),
        ({"released": True, "stacked": True}, r"embq\.stacked=True: embq\.released=true has stacked=False"),
        ({"released": True, "fusion": "gated"}, r"embq\.fusion=gated: embq\.released=true has fusion=add"),
        ({"released": True, "heads": 2}, r"embq\.heads=2: embq\.released=true has heads=4"),
        ({"fusion": "mul"}, r"embq\.fusion='mul': expected replace \| add \| gated"),
        ({"init": "dots"}, r"embq\.init='dots'"),
        ({"at": "8"}, r"embq\.at='8'"),
        ({"num_queries": 2.5}, r"embq\.num_queries=2\.5"),
        ({"dims": 8}, r"no knob 'dims'; did you mean 'dim'"),
    ],
)
def test_bad_knobs_are_refused_in_one_line(knobs, message):
    with pytest.raises(UsageError, match=message) as caught:
        embq(**knobs)
    assert "\n" not in str(caught.value)


def test_unknown_name():
    with pytest.raises(UsageError, match="unknown query module 'embqq'; did you mean 'embq'"):
        registry.get("embqq")


def test_put_back_is_a_masked_scatter():
    torch.manual_seed(1)
    hidden = torch.randn(3, 7, 4)
    index = torch.tensor([[0, 2, 6], [5, -1, -1], [-1, -1, -1]])
    keep = torch.tensor([[True, False, True], [True, True, True], [True, True, True]])
    new = torch.randn(3, 3, 4)
    expected = hidden.clone()
    for row, slot in ((0, 0), (0, 2), (1, 0)):
        expected[row, index[row, slot]] = new[row, slot]
    assert torch.equal(put_at_positions(hidden, index, new, keep), expected)
    assert torch.equal(take_at_positions(hidden, index)[0], hidden[0, index[0]])
