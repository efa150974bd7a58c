"""PACT's parts by their definitions: pooled attention, centres, exact counts, proportional attention."""

import pytest
import torch
import torch.nn.functional as F
from pruning_cases import DEPTH, ROWS, build, inputs
from torch import Tensor

from compressors.errors import UsageError
from llm_adapters.pruning import View, registry
from llm_adapters.pruning.attention import compute_pooled_row
from llm_adapters.pruning.base import Choice
from llm_adapters.pruning.cuts import make_cut
from llm_adapters.pruning.pact import find_centres, measure_distances, rank_by_density


def make_view(rows: int = 2, visual: int = 20, fewer: int = 6) -> View:
    """Rows of 24 tokens, of which the visual ones stand from 2 on; the second row has fewer."""
    generator = torch.Generator().manual_seed(2)
    counts = [visual, visual - fewer][:rows]
    places = torch.arange(24)
    is_visual = torch.stack([(places >= 2) & (places < 2 + count) for count in counts])
    attention = torch.rand(rows, 1, 24, generator=generator)
    hidden, keys = torch.randn(2, rows, 24, 8, generator=generator)
    return View(0, is_visual, counts, counts, places.expand(rows, -1), attention, hidden, keys)


def choose_one_by_one(apart: Tensor, order: list[int], distance: float) -> set[int]:
    """Centres as the paper says it."""
    centres: set[int] = set()
    for token in order:
        if all(apart[token, centre] > distance for centre in centres):
            centres.add(token)
    return centres


@pytest.mark.parametrize("distance", [0.0, 0.3, 0.8, 1.2, 2.0])
def test_centres_are_those_of_the_loop(distance):
    generator = torch.Generator().manual_seed(0)
    apart = measure_distances(torch.randn(3, 40, 5, generator=generator))
    chosen = torch.rand(3, 40, generator=generator) > 0.3
    ranks = rank_by_density(apart, chosen)
    centres = find_centres(apart, ranks, chosen, torch.full((3,), distance))
    for row in range(3):
        density = torch.exp(-((apart[row] / 2) ** 2))[:, chosen[row]].sum(1)
        tokens = chosen[row].nonzero().flatten().tolist()
        order = sorted(tokens, key=lambda token: -density[token])
        assert set(centres[row].nonzero().flatten().tolist()) == choose_one_by_one(
            apart[row], order, distance
        )


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.9])
def test_counts_are_exact_and_rows_their_own(ratio):
    pruner = registry.create("pact", llm_layers=8, ratio=ratio)
    view = make_view()
    choice = pruner.choose_tokens(view)
    assert choice.keep.sum(1).tolist() == choice.counts == [round(20 * ratio), round(14 * ratio)]
    assert not (choice.keep & ~view.visual).any()
    if ratio:
        is_own = choice.into == torch.arange(24)
        assert is_own[choice.keep].all() and is_own[~view.visual].all()
        assert choice.keep.gather(1, choice.into)[~is_own].all()  # whoever goes, goes to one that stays
        sizes = choice.sizes.masked_fill(~choice.keep, 0).sum(1)
        assert torch.equal(sizes, (choice.keep | ~is_own).sum(1).float())
    for row in range(2):
        alone = View(
            0,
            view.visual[row : row + 1],
            view.counts[row : row + 1],
            view.first[row : row + 1],
            view.raters[row : row + 1],
            view.attention[row : row + 1],
            view.hidden[row : row + 1],
            view.keys[row : row + 1],
        )
        assert torch.equal(pruner.choose_tokens(alone).keep[0], choice.keep[row])


def test_a_small_distance_leaves_more_tokens_than_a_large_one():
    totals = []
    for distance in (0.01, 0.5, 1.0):
        pruner = registry.create("pact", llm_layers=8, distance=distance)
        totals.append(sum(pruner.choose_tokens(make_view()).counts))
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]
    assert totals[0] == int(20 * 0.55) + int(14 * 0.55)  # what is unimportant has no centre


def test_pooled_attention_by_its_definition():
    """Grouped heads; the second row has a rater less, the third none."""
    query, key = torch.randn(3, 4, 6, 8), torch.randn(3, 2, 6, 8)
    index = torch.tensor([[1, 2, 4], [0, 5, -1], [-1, -1, -1]])
    row = compute_pooled_row(query, key, index)
    assert row.shape == (3, 1, 6) and not row[2].any()
    for number, raters in enumerate(([1, 2, 4], [0, 5])):
        expected = torch.zeros(6)
        for head in range(4):
            mean = query[number, head, raters].mean(0)
            logits = key[number, head // 2, raters] @ mean / 8**0.5
            expected[raters] += logits.softmax(0) / 4
        torch.testing.assert_close(row[number, 0], expected)


@pytest.mark.parametrize("mask", ["none", "boolean", "added"])
@pytest.mark.parametrize("new", [7, 1])
def test_a_token_of_size_three_receives_what_three_of_its_kind_do(mask, new):
    """At prefill, and for a token behind it: 7 tokens, of which 2, 3 and 4 are one."""
    query, key, value = torch.randn(3, 1, 2, 7 + (new == 1), 8)
    key[:, :, 3:5], value[:, :, 3:5] = key[:, :, 2:3], value[:, :, 2:3]
    total = query.shape[2]
    causal = torch.ones(total, total, dtype=torch.bool).tril()
    # to token 2 of the shorter row all of its kind are there already
    whole = F.scaled_dot_product_attention(query, key, value, causal)
    visual = torch.zeros(1, 7, dtype=torch.bool)
    visual[:, 2:5] = True
    keep = visual.clone()
    keep[:, 3:5] = False
    sizes = torch.tensor([[1.0, 1, 3, 1, 1, 1, 1]])
    cut = make_cut(1, None, 7, visual, Choice(keep, [1], None, sizes), [4], renumbered=None)
    given = {
        "none": None,
        "boolean": causal[None, None, -new:],
        "added": torch.zeros(total, total).masked_fill(~causal, torch.finfo(torch.float32).min)[
            None, None, -new:
        ],
    }[mask]
    narrow = cut.narrow_mask(given, total, new, boolean=True)
    left = torch.tensor([0, 1, 2, 5, 6, *range(7, total)])
    asking = left if new == 7 else torch.tensor([7])
    read = F.scaled_dot_product_attention(query[:, :, asking], key[:, :, left], value[:, :, left], narrow)
    behind = asking > 4  # what stands before or among them has not seen all three
    torch.testing.assert_close(read[:, :, behind], whole[:, :, asking[behind]])


@torch.no_grad()
def test_proportional_attention_changes_answers_and_flash_attention_is_refused():
    model, processor = build()
    batch = inputs(processor, ROWS)
    model.set_pruner("pact", ratio=0.2)
    proportional = model(**batch).logits[:, -1]
    model.set_pruner("pact", ratio=0.2, proportional=False)
    assert not torch.allclose(model(**batch).logits[0, -1], proportional[0])
    model.set_pruner("pact", ratio=0.2)
    model.language_model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UsageError, match="pact: proportional attention needs masks"):
        model(**batch)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"distance": 3.0}, "distance=3.0"),
        ({"distance": 0.2, "average": 0.5}, "set one of them"),
        ({"important": 1.5}, "important=1.5"),
        ({"recall": -1.0}, "recall=-1.0"),
        ({"layer": 9}, "layers=\\[9\\]"),
    ],
)
def test_what_cannot_be_is_refused(knobs, message):
    with pytest.raises(UsageError, match=message):
        registry.create("pact", llm_layers=DEPTH, **knobs)
