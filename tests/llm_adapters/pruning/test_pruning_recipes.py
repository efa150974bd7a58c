"""FitPrune's calibration, and the parts of SparseVLM, each against its definition."""

import pytest
import torch
from factories import make_batch, picture
from pruning_cases import DEPTH, RECIPE, ROWS, TOKENS, build, inputs

from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.pruning import Choice, SparseVLM, View, registry, schedule
from llm_adapters.pruning.attention import compute_attention_rows, compute_pooled_row
from llm_adapters.pruning.base import Prompt
from llm_adapters.pruning.calibration import calibrate_pruner, fit_recipe
from llm_adapters.pruning.cuts import make_cut
from llm_adapters.pruning.sparsevlm import find_density_peaks, find_relevant_text

SAMPLES = [([Turn(f"{IMAGE}\nWhat is {'a ' * (i % 3)}this?")], [picture(i)]) for i in range(6)]


@pytest.mark.parametrize("average", [0.3, 0.6, 0.9])
def test_calibration_reaches_its_budget(average):
    model, processor = build()
    batches = [inputs(processor, SAMPLES[:4]), inputs(processor, [*SAMPLES[4:], ROWS[1]])]
    model.set_pruner("fitprune", average=average)
    recipe = calibrate_pruner(model, batches)
    assert len(recipe) == DEPTH - 1 and list(recipe) == sorted(recipe, reverse=True)
    assert (1 + sum(recipe)) / DEPTH == pytest.approx(average, abs=1e-4)
    assert model.config.pruner_knobs == {"average": average, "recipe": recipe}
    with torch.no_grad():
        model(**batches[0])
    assert model.pruner.measured_visual_tokens() == pytest.approx(average * TOKENS, abs=1)
    assert calibrate_pruner(model, batches) == recipe  # the same samples, the same recipe


def test_a_recipe_does_not_depend_on_batches():
    """Padding and company change nothing."""
    model, processor = build()
    recipes = []
    for size in (1, 3, 6):
        model.set_pruner("fitprune", average=0.5)
        starts = range(0, 6, size)
        recipes.append(calibrate_pruner(model, [inputs(processor, SAMPLES[i : i + size]) for i in starts]))
    assert recipes[1] == pytest.approx(recipes[0], abs=0.02)
    assert recipes[2] == pytest.approx(recipes[0], abs=0.02)


def test_a_recipe_has_the_smallest_loss_that_reaches_the_budget():
    """Layers that give little attention away early are cut early."""
    asked = []

    def left(loss):
        asked.append(loss)
        return [1 - loss / 2, 1 - loss, 1 - loss]  # average over 4 layers: 1 - 0.625 loss

    recipe = fit_recipe(4, 0.75, left)
    assert recipe == pytest.approx((0.8, 0.6, 0.6), abs=2e-3)
    assert len(asked) == 11


def test_a_calibration_needs_images_and_fitprune():
    model, processor = build()
    model.set_pruner("fitprune")
    with pytest.raises(UsageError, match="none of the samples"):
        calibrate_pruner(model, [inputs(processor, [ROWS[1]])])
    model.set_pruner("fastv")
    with pytest.raises(UsageError, match="pruner=fastv: only fitprune"):
        calibrate_pruner(model, [])


def test_rows_of_attention_are_eager_ones():
    """Grouped heads, a soft cap, masks of each kind, fills."""
    query, key = torch.randn(2, 4, 7, 8), torch.randn(2, 2, 7, 8)
    index = torch.tensor([[6, 2], [5, -1]])
    causal = torch.ones(7, 7).tril().bool()
    padded = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    seen = causal & padded[:, None, None].bool()
    logits = 3 * torch.tanh((query @ key.repeat_interleave(2, 1).mT) * 0.4 / 3)
    for mask, allowed in (
        (None, causal),
        (padded, seen),
        (seen, seen),
        (torch.where(seen, 0.0, torch.finfo(torch.float32).min), seen),
    ):
        whole = logits.masked_fill(~allowed, -torch.inf).softmax(-1)
        for heads, joined in (("mean", whole.mean(1)), ("max", whole.amax(1))):
            found = compute_attention_rows(query, key, mask, index, heads, scaling=0.4, softcap=3.0)
            expected = torch.stack(
                [torch.stack([joined[0, 6], joined[0, 2]]), torch.stack([joined[1, 5], torch.zeros(7)])]
            )
            torch.testing.assert_close(found, expected)


def test_rows_of_attention_end_at_a_sliding_window():
    query, key = torch.randn(2, 1, 2, 9, 8)
    index, padded = torch.tensor([[8, 5, 1]]), torch.ones(1, 9)
    back = torch.arange(9)[:, None] - torch.arange(9)
    allowed = (back >= 0) & (back < 4)
    whole = (query @ key.mT * 8**-0.5).masked_fill(~allowed, -torch.inf).softmax(-1).mean(1)
    for mask in (None, padded, allowed.expand(1, 1, 9, 9)):
        found = compute_attention_rows(query, key, mask, index, "mean", sliding_window=4)
        torch.testing.assert_close(found, whole[:, index[0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_attention_are_of_full_precision(dtype):
    """Scores beyond float16's largest number, and differences that bfloat16 has no digits for."""
    query, key = torch.full((1, 1, 4, 64), 48.0), torch.full((1, 1, 4, 64), 48.0)
    key[0, 0, 2, 0] = 48.25
    found = compute_attention_rows(query.to(dtype), key.to(dtype), None, torch.tensor([[3]]), "mean")
    expected = torch.tensor([0, 0, 48 * 0.25 / 8, 0]).softmax(0)  # 64 * 48 * 48 is what all share
    torch.testing.assert_close(found[0, 0], expected, rtol=1e-3, atol=1e-3)


def test_autocast_does_not_round_what_rates():
    """Rows of attention, of each rater and of all as one, their mean, and which words are relevant."""
    torch.manual_seed(0)
    query, key, embeds = torch.randn(2, 4, 60, 8), torch.randn(2, 2, 60, 8), torch.randn(2, 60, 6)
    index = torch.arange(40, 60).expand(2, -1)
    visual = torch.arange(60).expand(2, -1) < 40

    def rate():
        rows = compute_attention_rows(query, key, None, index, "mean")
        view = View(0, visual, [40, 40], [40, 40], index, rows, embeds)
        pooled = compute_pooled_row(query, key, index)
        return rows, pooled, view.average_attention(), find_relevant_text(embeds, visual, ~visual)

    expected = rate()
    with torch.autocast("cpu", torch.bfloat16):
        found = rate()
    for one, other in zip(found, expected):
        assert torch.equal(one, other)


def test_relevant_words_are_those_above_the_mean():
    embeds = torch.zeros(2, 5, 3)
    embeds[:, :2] = torch.tensor([4.0, 0.0, 0.0])  # visual
    embeds[:, 2], embeds[:, 3] = torch.tensor([4.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    visual = torch.tensor([[1, 1, 0, 0, 0]] * 2).bool()
    text = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 1, 0]]).bool()  # the only word is its own mean
    expected = torch.tensor([[0, 0, 1, 0, 0], [0, 0, 0, 1, 0]]).bool()
    assert torch.equal(find_relevant_text(embeds, visual, text), expected)


def show_rows(visual: list[list[int]], text: list[list[int]]) -> Prompt:
    """Rows in which the last token is what answers start from; words are all alike."""
    is_visual = torch.tensor(visual).bool()
    last = torch.zeros_like(is_visual)
    last[:, -1] = True
    counts = is_visual.sum(1).tolist()
    everything = torch.ones_like(is_visual)
    embeds = last.new_ones(*last.shape, 4)
    return Prompt(is_visual, torch.tensor(text).bool(), everything, everything, last, 1, counts, embeds)


def test_words_in_front_of_an_image_do_not_rate():
    """An image first, in the middle, behind the question, between two images; and none."""
    prompt = show_rows(
        [[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]],
        [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 1, 0], [1, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0]],
    )
    expected = [[2, 3, 4], [4], [5], [4], [0, 1, 2, 3, 4]]
    for name in ("sparsevlm", "dart"):
        raters = registry.create(name, llm_layers=DEPTH).select_raters(prompt)
        assert [row[row >= 0].tolist() for row in raters] == expected, name


def test_text_between_images_has_no_say_in_fitprune():
    prompt = show_rows([[0, 1, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0], [0] * 6], [[1] * 6] * 3)
    raters = registry.create("fitprune", llm_layers=DEPTH, recipe=RECIPE).select_raters(prompt)
    assert [row[row >= 0].tolist() for row in raters] == [[1, 3, 4, 5], [1, 2, 3, 4, 5], []]


@torch.no_grad()
@pytest.mark.parametrize("adaptive", [None, 0.6])
def test_what_rates_an_image_behind_the_question_sees_all_of_it(adaptive):
    """What attends with exactly 0 would keep the first tokens in raster order, and lower the rank."""
    model, processor = build()
    model.set_pruner("sparsevlm", layers=(1,), adaptive=adaptive)
    views = []
    choose_tokens = model.pruner.choose_tokens
    model.pruner.choose_tokens = lambda view: (views.append(view), choose_tokens(view))[1]
    model(**inputs(processor, [([Turn(f"A dog or a cat, what is this {IMAGE}?")], [picture(1)])]))
    [view] = views
    assert (view.attention[..., view.visual[0]] > 0).all()
    if adaptive:  # there are raters, so some tokens are not redundant
        [kept_count] = choose_tokens(view).counts
        assert kept_count > TOKENS - int(adaptive * TOKENS)


def test_density_peaks_of_two_groups():
    """Two dense groups and a token that is not chosen."""
    hidden = torch.tensor([0.0, 0.1, 0.2, 5.0, 9.0, 9.1, 9.3])[None, :, None].repeat(1, 1, 4)
    chosen = torch.tensor([[1, 1, 1, 0, 1, 1, 1]]).bool()
    centres, into = find_density_peaks(hidden, chosen, [2])
    assert centres[0].nonzero().flatten().tolist() == [1, 5]
    assert into.tolist() == [[1, 1, 1, 3, 5, 5, 5]]


@pytest.mark.parametrize("step", [1.0, 100.0])
def test_density_peaks_of_equally_dense_tokens(step):
    """Pairs are as dense as each other, far apart of a density that no float has: still one centre each."""
    hidden = torch.tensor([0.0, 1.0, 10.0, 11.0, 30.0, 31.0])[None, :, None].repeat(1, 1, 4) * step
    centres, into = find_density_peaks(hidden, torch.ones(1, 6).bool(), [3])
    assert centres[0].nonzero().flatten().tolist() == [0, 2, 4]
    assert into.tolist() == [[0, 0, 2, 2, 4, 4]]


def test_density_peaks_of_identical_tokens():
    chosen = torch.tensor([[0, 1, 1, 1, 0, 1]]).bool()
    centres, into = find_density_peaks(torch.ones(1, 6, 4), chosen, [2])
    assert centres.sum() == 2 and not (centres & ~chosen).any()
    assert centres[0, into[0, chosen[0]]].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_merging_many_large_tokens(dtype):
    """Their sum is beyond float16's largest number, their mean is not."""
    tokens = 40
    choice = Choice(torch.zeros(1, tokens + 1).bool(), [1], torch.zeros(1, tokens + 1).long())
    choice.keep[0, 0], choice.into[0, -1] = True, tokens
    visual = torch.ones(1, tokens + 1).bool()
    visual[0, -1] = False
    cut = make_cut(1, None, tokens + 1, visual, choice, [1], renumbered=None)
    hidden = torch.full((1, tokens + 1, 3), 4000.0, dtype=dtype)
    assert cut.narrow_hidden(hidden).equal(hidden[:, :2])


def test_recycled_tokens_are_means_at_their_centres():
    """20 visual tokens, half of them kept; of the others 30 % make one cluster, which counts."""
    pruner = SparseVLM(32, layers=(4,), ratio=0.5)
    hidden, attention = torch.randn(1, 22, 6), torch.rand(1, 1, 22)
    visual = torch.ones(1, 22).bool()
    visual[0, -2:] = False
    choice = pruner.choose_tokens(View(0, visual, [20], [20], torch.tensor([[21]]), attention, hidden))
    assert choice.counts == [10] and choice.keep.sum() == 10 and not (choice.keep & ~visual).any()
    own = torch.arange(22)
    merged = (choice.into[0] != own).nonzero().flatten()
    [centre] = choice.into[0, merged].unique().tolist()
    order = attention[0, 0, :20].argsort(descending=True)
    assert set(merged.tolist()) | {centre} == set(order[9:12].tolist())
    assert choice.keep[0, order[:9]].all() and choice.keep[0, centre]


def test_shares_meet_an_average_and_need_two_layers():
    assert schedule.average_share(4, (1, 3), (0.5, 0.25)) == (1 + 0.5 + 0.5 + 0.25) / 4
    found = schedule.solve_shares(8, (2, 4, 6), 0.5, lambda r: schedule.geometric_shares(r, 3))
    assert schedule.average_share(8, (2, 4, 6), found) == pytest.approx(0.5)
    with pytest.raises(UsageError, match="one decoder layer"):
        schedule.check_schedule(1, (1,), None)


@pytest.mark.parametrize("failing", [0, 2])
def test_a_calibration_that_fails_leaves_the_pruner_as_it_was(failing):
    """In the observing pass, or in a trial."""
    model, processor = build()
    model.set_pruner("fitprune", average=0.5)
    before, batch = model.pruner, inputs(processor, SAMPLES[:2])
    calls = []

    def fail(*_):
        calls.append(0)
        if len(calls) > failing:
            raise KeyboardInterrupt

    handle = model.language_model.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        calibrate_pruner(model, [batch])
    handle.remove()
    assert model.pruner is before and model.config.pruner_knobs == {"average": 0.5}
    with pytest.raises(UsageError, match="fitprune has no recipe yet"):
        model(**batch)
    assert len(calibrate_pruner(model, [batch])) == DEPTH - 1


def test_training_labels_do_not_change_a_calibration():
    model, processor = build()
    batch = make_batch(processor, SAMPLES[:2])
    recipes = []
    for each in (batch, {k: v for k, v in batch.items() if k != "labels"}):
        model.set_pruner("fitprune")
        recipes.append(calibrate_pruner(model, [each]))
    assert recipes[0] == recipes[1]
