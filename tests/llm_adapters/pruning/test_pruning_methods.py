"""What pruners are shown of a layer, and the parts of those that need no attention."""

import pytest
import torch
from factories import LLMS
from pruning_cases import ROWS, build, inputs
from torch import Tensor

from compressors.errors import UsageError
from connectors.versions import CACHE
from llm_adapters.adapter import decoder_layers
from llm_adapters.pruning import Choice, Pruner, View, keep_highest, registry
from llm_adapters.pruning.attention import compute_attention_rows
from llm_adapters.pruning.base import put_back, take_tokens
from llm_adapters.pruning.dart import add_least_similar
from llm_adapters.pruning.fastv import mark_even_tokens
from llm_adapters.pruning.gprune import spread_importance
from llm_adapters.pruning.run import PrunedPass
from llm_adapters.pruning.unrotated import make_unturned


class Spy(Pruner):
    """Keeps the first half of the visual tokens, and what it is shown."""

    registered_name = "spy"

    def __init__(self, llm_layers: int, needs: tuple, layers: tuple[int, ...]):
        super().__init__(llm_layers, layers, (0.5,) * len(layers), "keep")
        self.needs = needs
        self.views: list[View] = []

    def choose_tokens(self, view: View) -> Choice:
        self.views.append(view)
        order = torch.arange(view.visual.shape[1], 0, -1).expand(view.visual.shape)
        return keep_highest(order, view.visual, self.count_kept_tokens(view))


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("llm", [*LLMS, "qwen3", "gpt_neox"])
def test_a_view_has_the_keys_of_the_cache_and_normed_states(llm, side):
    """Of a padded batch, behind two layers, the second of which has fewer tokens; grouped keys where the
    family has them. Only what is asked for is there."""
    model, processor = build(llm)
    spy = Spy(4, ("keys", "normed"), (1, 3))
    model.use_pruner(spy)
    batch = inputs(processor, [ROWS[0], *ROWS[2:]], side)  # a row without an image drops nothing
    cache = model(**batch)[CACHE]
    decoder = model.language_model.get_decoder()
    norm = getattr(decoder, "norm", None) or getattr(decoder, "final_layernorm", None)
    norm = norm or decoder.final_layer_norm
    for layer, view in zip(spy.layers, spy.views, strict=True):
        keys = cache.layers[layer - 1].keys
        assert view.keys.shape == (*view.hidden.shape[:2], keys.shape[1] * keys.shape[3])
        assert torch.equal(view.keys.unflatten(2, (keys.shape[1], -1)).transpose(1, 2), keys)
        assert torch.equal(view.normed, norm(view.hidden))
        assert view.attention.shape == (3, 0, view.hidden.shape[1])
    assert spy.views[1].hidden.shape[1] < spy.views[0].hidden.shape[1]
    plain = Spy(4, (), (1, 3))
    model.use_pruner(plain)
    assert torch.equal(model(**batch).logits, model(**batch).logits)
    assert all(view.keys is None and view.normed is None for view in plain.views)
    assert not any(hasattr(m.config, "slothkit_original") for m in model.modules() if hasattr(m, "config"))


@torch.no_grad()
def test_an_llm_without_a_last_norm_is_refused():
    model, _ = build()
    model.language_model.get_decoder().norm = torch.nn.Identity()
    with pytest.raises(UsageError, match="has no norm behind its decoder layers"):
        model.set_pruner("dart")
    assert model.pruner is None
    model.set_pruner("vtw")


def test_taking_tokens_and_putting_them_back():
    visual = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 1, 0, 0]]).bool()
    index = torch.tensor([[1, 2, 4], [2, -1, -1]])
    view = View(0, visual, [3, 1], [3, 1], torch.empty(2, 0), torch.empty(2, 0, 5), torch.empty(2, 5, 1))
    assert torch.equal(view.locate_visual_tokens(), index)
    values = torch.arange(1.0, 11).view(2, 5, 1)
    taken = take_tokens(values, index)
    assert taken.squeeze(2).tolist() == [[2, 3, 5], [8, 0, 0]]
    assert put_back(taken.squeeze(2), index, visual).tolist() == [[0, 2, 3, 0, 5], [0, 0, 8, 0, 0]]


def make_view(length: int, visual: slice, **options) -> View:
    """One row, its visual tokens there; the raters are what comes behind."""
    torch.manual_seed(0)
    is_visual = torch.zeros(1, length, dtype=torch.bool)
    is_visual[:, visual] = True
    count = int(is_visual.sum())
    raters = torch.arange(visual.stop, length).unsqueeze(0)
    given = {"keys": torch.randn(1, length, 8), "normed": torch.randn(1, length, 6), **options}
    hidden = torch.randn(1, length, 6)
    return View(0, is_visual, [count], [count], raters, torch.empty(1, 0, length), hidden, **given)


@pytest.mark.parametrize("ratio", [0.0, 0.05, 0.21, 0.222, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("behind", [1, 3, 9])
def test_dart_keeps_exactly_its_budget(ratio, behind):
    """Where the parts of pivots do not come out even, the pool would run dry, there are fewer words than
    pivots, or fewer tokens are kept than there are visual pivots."""
    view = make_view(62 + behind, slice(2, 62))
    pruner = registry.create("dart", llm_layers=4, ratio=ratio)
    choice = pruner.choose_tokens(view)
    assert choice.counts == [int(60 * ratio + 0.5)] == choice.keep.sum(1).tolist()
    assert not (choice.keep & ~view.visual).any()


def test_dart_s_pivots_take_their_turns_in_the_order_of_the_prompt():
    """Two pivots, the second an absent one in the second row; what the first took is not there for the
    next."""
    similarity = torch.tensor([[[9.0, 1, 2, 3, 4], [9, 1, 5, 0, 4]], [[9.0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]])
    kept = torch.tensor([[1, 0, 0, 0, 0]] * 2).bool()
    is_token = torch.ones(2, 5).bool()
    is_pivot = torch.tensor([[1, 1], [1, 0]]).bool()
    found = add_least_similar(similarity, kept, is_token, is_pivot, torch.tensor([4, 3]))
    # row 0: two for the first (1, 2), one for the second (3); row 1: two for the only one
    assert found.tolist() == [[True, True, True, True, False], [True, True, True, False, False]]


def test_dart_drops_duplicates():
    """Of ten tokens that are nearly the same, and ten that differ, what is kept differs."""
    view = make_view(24, slice(0, 20))
    view.normed[:, :10] = view.normed[:, :1] + 0.01 * torch.randn(1, 10, 6)
    view.keys[:, 0] += 100  # a pivot
    kept = registry.create("dart", llm_layers=4, ratio=0.4, text_pivots=0, visual_pivots=1)
    keep = kept.choose_tokens(view).keep[0]
    assert keep[0] and not keep[1:10].any() and keep[10:20].sum() == 7


def test_a_random_choice_is_of_its_row_alone():
    pruner = registry.create("random_drop", llm_layers=4, ratio=0.5)
    view = make_view(24, slice(2, 22))
    alone = pruner.choose_tokens(view)
    assert alone.keep.sum() == 10 and torch.equal(alone.keep, pruner.choose_tokens(view).keep)
    # the same row between longer ones, behind padding
    visual = torch.zeros(2, 40, dtype=torch.bool)
    visual[0, 5:40], visual[1, 18:38] = True, True
    hidden = torch.empty(2, 40, 1)
    torch.rand(3)  # what ran before
    both = pruner.choose_tokens(
        View(0, visual, [35, 20], [35, 20], torch.empty(2, 0), torch.empty(2, 0, 40), hidden)
    )
    assert both.counts == [18, 10] == both.keep.sum(1).tolist()
    assert torch.equal(both.keep[1, 16:], alone.keep[0])
    other = registry.create("random_drop", llm_layers=4, ratio=0.5, seed=1)
    assert not torch.equal(other.choose_tokens(view).keep, alone.keep)


def test_importance_flows_to_a_token_that_stands_for_many():
    """Three alike and one alone: it keeps its own, they share theirs; what is no token takes no part."""
    tokens = torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [1, 0]]).unsqueeze(0)
    is_token = torch.tensor([[1, 1, 1, 1, 0]]).bool()
    importance = spread_importance(tokens, is_token, 0.5, 0.03, 5)[0]
    assert importance[3] == 1
    assert importance[1] == importance[:3].max()
    three = spread_importance(tokens[:, :4], is_token[:, :4], 0.5, 0.03, 5)[0]
    torch.testing.assert_close(importance[:4], three)


def test_importance_of_tokens_that_are_all_the_same_is_finite():
    tokens = torch.full((1, 6, 4), 3e4)
    importance = spread_importance(tokens, torch.ones(1, 6).bool(), 1.0, 1e-3, 5)
    assert importance.isfinite().all()


@torch.no_grad()
def test_no_visual_token_is_in_a_layer_behind_the_withdrawal():
    model, processor = build()
    model.set_pruner("vtw", layer=2)
    batch = inputs(processor, ROWS)
    cache = model(**batch)[CACHE]
    visual = (batch["input_ids"] == processor.image_token_id).sum(1)
    text = (batch["attention_mask"].sum(1) - visual).max()
    padded = batch["input_ids"].shape[1]
    lengths = [cache.get_seq_length(layer) for layer in range(4)]
    assert lengths[:2] == [padded, padded] and lengths[2] == lengths[3]
    # padding is not dropped, so the row that has most text and padding decides
    assert text <= lengths[2] == (padded - visual).max()
    assert model.pruner.measured_visual_tokens() == visual[visual > 0].float().mean() / 2


def watch_views(pruner: Pruner) -> list[View]:
    """What the pruner is shown from now on."""
    views: list[View] = []
    choose = pruner.choose_tokens
    pruner.choose_tokens = lambda view: (views.append(view), choose(view))[1]
    return views


def turn_back(values: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated queries or keys (B, H, T, d) of Llama, Qwen or Phi as they were before."""
    width = cos.shape[-1]
    turned, rest = values[..., :width], values[..., width:]
    first, second = turned.chunk(2, -1)
    half_turned = torch.cat([-second, first], -1)
    return torch.cat([turned * cos - half_turned * sin, rest], -1)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("at", [1, 2])
def test_attention_without_positions_is_that_of_keys_turned_back(monkeypatch, llm, side, at):
    """With EmbQ at the scoring layer, too; padding and what comes later are not seen."""
    model, processor = build(llm, at=at)
    model.set_pruner("fastv", layer=at, rotary=False)
    given, views = [], watch_views(model.pruner)
    real = PrunedPass.score_raters
    monkeypatch.setattr(
        PrunedPass, "score_raters", lambda run, *args: (given.append(args), real(run, *args))[1]
    )
    tables = []
    decoder_layers(model.language_model)[0].register_forward_pre_hook(
        lambda _, __, kwargs: tables.append(kwargs["position_embeddings"]), with_kwargs=True
    )
    model(**inputs(processor, ROWS, side))
    [(_, query, key, mask, arguments)], [view] = given, views
    cos, sin = (table.unsqueeze(1) for table in tables[0])
    plain_query, plain_key = turn_back(query, cos, sin), turn_back(key, cos, sin)
    scaling = arguments.get("scaling")
    expected = compute_attention_rows(plain_query, plain_key, mask, view.raters, "mean", scaling)
    torch.testing.assert_close(view.attention, expected, rtol=1e-4, atol=1e-5)
    rotated = compute_attention_rows(query, key, mask, view.raters, "mean", scaling)
    assert not torch.allclose(view.attention, rotated, rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_attention_without_positions_does_not_know_where_a_token_is():
    """Tokens that are all the same get the same, where rotary embeddings tell near from far; the cache has
    each key once."""
    model, processor = build(query_module=None)
    batch = inputs(processor, ROWS[:1])
    batch["pixel_values"] = torch.zeros_like(batch["pixel_values"])
    received = {}
    for rotary in (True, False):
        model.set_pruner("fastv", layer=1, rotary=rotary)
        views = watch_views(model.pruner)
        same = torch.ones(1, 1, 6, 6, model.vision_tower.dim)
        cache = model(**{k: v for k, v in batch.items() if k != "pixel_values"}, vision_features=same)[CACHE]
        assert cache.get_seq_length(0) == batch["input_ids"].shape[1]
        received[rotary] = views[0].average_attention()[views[0].visual]
    assert received[False].std() < 1e-6 < 1e-4 < received[True].std()


def test_positions_that_cannot_be_left_out_are_refused():
    cos, sin = torch.rand(2, 5, 4), torch.rand(2, 5, 4)
    unturned = make_unturned((cos, sin))
    torch.testing.assert_close(unturned, ((cos**2 + sin**2).sqrt(), torch.zeros_like(sin)))
    turns = torch.polar(cos, sin)
    torch.testing.assert_close(make_unturned(turns), torch.complex(cos, torch.zeros_like(sin)))
    for embeddings in (None, cos):
        with pytest.raises(UsageError, match="rotary=false: the decoder layers .* no rotary"):
            make_unturned(embeddings)


def test_evenly_spaced_tokens_are_kept_beside_the_best():
    """Of 12 tokens 6, half of them evenly spaced; a row of 5 beside it, and one without an image."""
    visual = torch.zeros(3, 14, dtype=torch.bool)
    visual[0, 1:13], visual[1, 6:11] = True, True
    attention = torch.linspace(0, 1, 14).expand(3, 1, 14)  # the bottom of the image receives most
    view = View(0, visual, [12, 5, 0], [12, 5, 0], torch.full((3, 1), 13), attention, torch.empty(3, 14, 1))
    keep = registry.create("fastv", llm_layers=4, ratio=0.5, uniform=0.5).choose_tokens(view).keep
    kept = [row.nonzero().flatten().tolist() for row in keep]
    assert kept == [[3, 7, 9, 10, 11, 12], [7, 9, 10], []]
    for count, expected in ((0, []), (1, [6]), (12, list(range(12)))):
        marks = mark_even_tokens(view, [count, 0, 0])[0, 1:13]
        assert marks.nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("name", ["dart", "gprune"])
def test_choices_are_made_in_float32_under_autocast(name):
    view = make_view(70, slice(2, 62))
    # so alike that bfloat16 tells few of them apart
    view.hidden = 1 + 0.01 * view.hidden
    view.normed = 1 + 0.01 * view.normed
    pruner = registry.create(name, llm_layers=4, ratio=0.3)
    expected = pruner.choose_tokens(view).keep
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pruner.choose_tokens(view).keep, expected)
