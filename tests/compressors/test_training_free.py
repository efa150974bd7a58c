"""Training-free selectors: each against a loop written from its definition, and what is known to go wrong."""

import pytest
import torch
import torch.nn.functional as F

import compressors
from compressors.cues import count_channels
from compressors.errors import UsageError
from compressors.holov import share_tokens
from compressors.prumerge import choose_centres
from compressors.prunesid import group_by_component, mark_unlike, share_tokens_of_groups
from compressors.selection import choose_by_class, rank_in_groups
from compressors.vscan import number_windows

DIM = 6
HEIGHT, WIDTH = 6, 9
PATCHES = HEIGHT * WIDTH


def make(name, **knobs):
    return compressors.create(name, dim=DIM, **knobs)


def image(attention=None, batch=2, height=HEIGHT, width=WIDTH, maps=1):
    """Patches and `maps` maps of attention; or the one map that is given, of one image."""
    patches = torch.randn(batch, height, width, DIM)
    if attention is None:
        attention = torch.randn(batch, height * width, maps).softmax(1)
    return torch.cat([patches, attention.view(batch, height, width, -1)], -1)


def test_classes_come_before_scores():
    scores = torch.tensor([[0.1, 0.4, 0.4, 0.3]])
    classes = torch.tensor([[1, 0, 0, 2]])
    kept = [choose_by_class(scores, classes, count)[0].tolist() for count in (1, 2, 3, 4)]
    assert kept == [[3], [0, 3], [0, 1, 3], [0, 1, 2, 3]]


def test_ranks_are_of_a_group():
    scores = torch.tensor([[3.0, 1, 2, 5, 5, 4], [0.0, 1, 2, 3, 4, 5]])
    ranks = rank_in_groups(scores, torch.tensor([0, 1, 0, 1, 1, 0]), 2)
    assert ranks.tolist() == [[1, 2, 2, 0, 1, 0], [2, 2, 1, 1, 0, 0]]


def list_vispruner(features, count, important):
    """One image's, by loops."""
    patches = F.normalize(features[..., :DIM].flatten(0, 1), dim=-1)
    attention = features[..., DIM].flatten()
    listed = sorted(range(len(patches)), key=lambda i: -attention[i])
    kept, listed = listed[:important], listed[important:]
    while len(listed) > count - important > 0:
        first, second = listed[::2], listed[1::2]
        likeness = {i: max((patches[i] @ patches[j]).item() for j in second) for i in first}
        first.sort(key=lambda i: -likeness[i])
        listed = first[min(8, len(listed) - count + important) :] + second
    return sorted(kept + listed[: count - important])


@pytest.mark.parametrize(("count", "important"), [(20, 10), (21, 10), (7, 3), (50, 25), (1, 0), (6, 6)])
def test_vispruner_is_its_loop(count, important):
    """Of odd lists, too, at which the released code fails."""
    features = image()
    part = make("vispruner", tokens=count, important=(important + 0.1) / count if important < count else 1.0)
    for one, kept in zip(features, part.kept(features)):
        assert kept.tolist() == list_vispruner(one, count, important)


def test_vispruner_drops_duplicates():
    """Of patches that are all alike but five, the five are kept."""
    features = image(batch=1)
    features[..., :DIM] = torch.ones(DIM)
    odd_ones = torch.tensor([3, 11, 20, 34, 52])
    features.view(PATCHES, -1)[odd_ones, :DIM] = 10 * torch.eye(5, DIM) - 3
    kept = make("vispruner", tokens=30, important=0.1).kept(features)[0]
    assert set(odd_ones.tolist()) <= set(kept.tolist())


def test_fastervlm_is_attention_alone():
    features = image()
    kept = make("vispruner", tokens=9, important=1).kept(features)
    assert kept.equal(features[..., DIM].flatten(1).topk(9).indices.sort().values)


def list_scope(features, count):
    """One image's, by loops."""
    patches = F.normalize(features[..., :DIM].flatten(0, 1), dim=-1)
    attention = features[..., DIM].flatten().tolist()
    similarity = (patches @ patches.T).tolist()
    chosen = []
    cover = [0.0] * len(patches)
    for _ in range(count):
        gains = {}
        for j in set(range(len(patches))) - set(chosen):
            gain = sum(max(0.0, similarity[i][j] - cover[i]) for i in range(len(patches)))
            gains[j] = gain * attention[j]
        best = max(gains, key=gains.__getitem__)
        chosen.append(best)
        cover = [max(cover[i], similarity[i][best]) for i in range(len(patches))]
    return sorted(chosen)


def test_scope_is_its_loop():
    features = image()
    for one, kept in zip(features, make("scope", tokens=15).kept(features)):
        assert kept.tolist() == list_scope(one, 15)


def test_scope_covers_before_it_repeats():
    """Two kinds of patches, one far more salient: both are kept; by attention alone it would be one."""
    features = image(batch=1)
    kinds = torch.arange(PATCHES) % 2
    patches = F.one_hot(kinds, DIM).float()
    attention = 0.001 + kinds.float()
    features = torch.cat([patches, attention[:, None]], -1).view(1, HEIGHT, WIDTH, -1)
    assert make("scope", tokens=2).kept(features)[0].tolist() == [0, 1]
    assert make("vispruner", tokens=2, important=1).kept(features)[0].tolist() == [1, 3]


def test_what_a_strip_has_no_room_for_goes_on():
    """The released code fills such places with zeros."""
    attention = torch.full((PATCHES,), 1e-4)
    attention[:9] = 1.0  # the first of six strips has all of it
    features = image(attention, batch=1)
    part = make("holov", tokens=20, strips=6)
    kept = part.kept(features)[0]
    assert len(kept.unique()) == 20 and kept[:9].tolist() == list(range(9))
    assert part(features)[0].equal(features[..., :DIM].flatten(1, 2)[0, kept])


@pytest.mark.parametrize("count", [1, 7, 30, 54])
def test_shares_of_strips(count):
    scores = torch.rand(50, 6) ** 4
    sizes = torch.tensor([9, 9, 9, 9, 9, 9])
    shares = share_tokens(scores, sizes, count)
    assert (shares.sum(1) == count).all() and (shares >= 0).all() and (shares <= sizes).all()
    fair = (count * scores / scores.sum(1, keepdim=True)).floor().clamp(max=9)
    assert (shares >= fair).all()
    # a better strip never has less than a worse one
    assert (shares.gather(1, scores.argsort(1)).diff() >= 0).all()


def test_holov_keeps_what_is_attended_in_each_strip():
    features = image()
    kept = make("holov", tokens=18, strips=6).kept(features)
    assert (kept.diff() > 0).all()
    for one, places in zip(features[..., DIM].flatten(1), kept):
        for start in range(0, PATCHES, 9):
            inside = [place for place in places.tolist() if start <= place < start + 9]
            best = start + one[start : start + 9].argsort(descending=True)
            assert inside == sorted(best[: len(inside)].tolist())


def test_more_strips_than_patches():
    features = image(height=2, width=3)
    assert make("holov", tokens=4, strips=16).kept(features).shape == (2, 4)


def make_hiprune_case(anchor, tokens, height=HEIGHT, width=WIDTH):
    """Kept with one anchor, registers being the first patches."""
    middle = torch.zeros(height * width)
    middle[anchor] = 1.0
    last = torch.arange(height * width, 0, -1).float()
    features = image(torch.stack([middle, last], -1), 1, height, width)
    return make("hiprune", tokens=tokens, anchors=5 / tokens).kept(features)[0].tolist()


@pytest.mark.parametrize(
    ("anchor", "neighbours"),
    [(30, [21, 29, 31, 39]), (26, [17, 25, 35]), (27, [18, 28, 36]), (53, [44, 52]), (0, [1, 9])],
)
def test_hiprune_s_buffers_do_not_wrap(anchor, neighbours):
    """Those of the last patch of a row are in its own row; the released code's wrap around."""
    kept = make_hiprune_case(anchor, tokens=10)
    cross = {anchor, *neighbours}
    registers = [place for place in range(PATCHES) if place not in cross]
    assert kept == sorted([*cross, *registers[: 10 - len(cross)]])


def test_hiprune_s_buffers_go_before_its_anchors():
    assert make_hiprune_case(anchor=30, tokens=5) == [21, 29, 30, 31, 39]
    middle = torch.zeros(PATCHES)
    middle[[10, 30, 50]] = torch.tensor([3.0, 2, 1])
    features = image(torch.stack([middle, torch.ones(PATCHES)], -1), 1)
    part = make("hiprune", tokens=14, anchors=1.0)  # three anchors, twelve buffers
    assert {10, 30, 50} <= set(part.kept(features)[0].tolist())


def test_a_small_budget_has_registers_alone():
    features = image(maps=2)
    kept = make("hiprune", tokens=16).kept(features)
    assert kept.equal(features[..., -1].flatten(1).topk(16).indices.sort().values)


@pytest.mark.parametrize(("height", "width"), [(6, 9), (7, 10), (3, 3), (1, 20)])
def test_windows_are_even(height, width):
    windows = number_windows(height, width, 4, torch.device("cpu"))
    sizes = windows.bincount()
    assert len(sizes) == min(4, height) * min(4, width)
    assert sizes.min() >= (height // min(4, height)) * (width // min(4, width)) > 0


@pytest.mark.parametrize("tokens", [1, 10, 32, 35, 54])
def test_vscan_has_all_its_tokens(tokens):
    """The released code has fewer unless half of them are a multiple of 16."""
    features = image(maps=2)
    part = make("vscan", tokens=tokens)
    kept = part.kept(features)
    assert kept.shape == (2, tokens) and (kept.diff() > 0).all()
    windows = number_windows(HEIGHT, WIDTH, 4, features.device)
    for row in kept:
        assert windows[row].bincount(minlength=16).min() >= min(tokens // 2 // 16, 2)


def test_vscan_s_tokens_are_means_of_what_is_like_them():
    features = image(maps=2)
    part = make("vscan", tokens=10)
    kept = part.kept(features)
    for one, places, tokens in zip(features[..., :DIM].flatten(1, 2), kept, part(features)):
        unit = F.normalize(one, dim=-1)
        groups = {place: [one[place]] for place in places.tolist()}
        for patch in set(range(PATCHES)) - set(groups):
            nearest = max(groups, key=lambda place: (unit[place] @ unit[patch]).item())
            groups[nearest].append(one[patch])
        means = [torch.stack(groups[place]).mean(0) for place in places.tolist()]
        torch.testing.assert_close(tokens, torch.stack(means))


def list_unlike(similarity, attention, groups, threshold):
    """One image's, by loops."""
    marked = []
    for patch in sorted(range(len(groups)), key=lambda i: -attention[i]):
        before = [other for other in marked if groups[other] == groups[patch]]
        if not any(similarity[patch, other] > threshold for other in before):
            marked.append(patch)
    return sorted(marked)


def test_prunesid_marks_what_is_unlike():
    patches = F.normalize(torch.randn(3, 40, DIM), dim=-1)
    similarity = patches @ patches.mT
    attention = torch.rand(3, 40)
    groups = torch.randint(4, (3, 40))
    threshold = torch.tensor([0.1, 0.5, 1.5]).view(3, 1, 1)
    marked = mark_unlike(similarity, attention, groups, threshold)
    for row in range(3):
        expected = list_unlike(similarity[row], attention[row], groups[row].tolist(), threshold[row, 0, 0])
        assert marked[row].nonzero().flatten().tolist() == expected
    assert marked[2].all()  # above 1, as in large budgets, nothing is alike


def test_prunesid_s_groups_are_components():
    """Patches of three patterns and more or less of each: the groups are the patterns."""
    patterns = torch.linalg.qr(torch.randn(12, 3)).Q.T
    patterns = F.normalize(patterns - patterns.mean(1, keepdim=True), dim=-1)
    kinds = torch.arange(30) % 3
    lengths = torch.tensor([3.0, 2.0, 1.0])[kinds] + torch.rand(30) / 10
    tokens = (patterns[kinds] * lengths[:, None] * 0.1).unsqueeze(0)
    groups = group_by_component(tokens, 3)[0]
    for kind in range(3):
        assert len(groups[kinds == kind].unique()) == 1
    assert len(groups.unique()) == 3


@pytest.mark.parametrize(("count", "group_count"), [(1, 1), (16, 4), (40, 10), (54, 13)])
def test_prunesid_s_shares_make_the_budget(count, group_count):
    groups = (torch.rand(30, PATCHES) ** 3 * group_count).long()  # the first is the largest, some are empty
    sizes = F.one_hot(groups, group_count).sum(1)
    unlike = (sizes * torch.rand(30, group_count)).ceil().long()
    shares = share_tokens_of_groups(sizes, unlike, count, count)
    assert (shares.sum(1) == count).all()
    assert (shares <= sizes).all() and (shares >= sizes.clamp(max=1)).all()


def test_prunesid_has_the_same_tokens_whatever_was_drawn():
    features = image()
    part = make("prunesid", tokens=12)
    kept = part.kept(features)
    torch.manual_seed(1)
    assert part.kept(features).equal(kept) and (kept.diff() > 0).all()


SELECTORS = ["vispruner", "scope", "holov", "hiprune", "vscan", "prunesid"]


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_choices_are_made_in_float32(name, dtype):
    """Patches that half precision tells apart only before they are multiplied."""
    part = make(name, tokens=12)
    features = image(maps=len(part.needs_cues)).to(dtype)
    assert part.kept(features).equal(part.kept(features.float()))


@pytest.mark.parametrize("name", SELECTORS)
def test_rows_have_no_part_in_one_another(name):
    """Not even where the others' attention and length are far from their own."""
    part = make(name, tokens=12)
    channels = count_channels(DIM, (), part.needs_cues, 0)
    features = image(maps=channels - DIM, batch=4)
    features *= torch.tensor([1.0, 1e-3, 50, 1]).view(4, 1, 1, 1)
    together = part.kept(features)
    for one, kept in zip(features.split(1), together):
        assert part.kept(one)[0].equal(kept)


@pytest.mark.parametrize("name", SELECTORS)
def test_all_patches_are_all_of_them(name):
    part = make(name, tokens=PATCHES)
    features = image(maps=len(part.needs_cues))
    torch.testing.assert_close(part(features), features[..., :DIM].flatten(1, 2))


def question(batch, words=5, width=6):
    """Patches with what the projector makes of them, and words, some of them padding."""
    features = image(maps=width, batch=batch)
    text = torch.randn(batch, words, width)
    mask = torch.arange(words) < torch.tensor([words, 2, 3, 1])[:batch, None]
    return features, text, mask


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mmtok_chooses_in_float32(dtype):
    features, text, mask = question(2)
    part = make("mmtok", tokens=12)
    features, text = features.to(dtype), text.to(dtype)
    assert part.kept(features, text, mask).equal(part.kept(features.float(), text.float(), mask))


def test_mmtok_s_rows_have_no_part_in_one_another():
    features, text, mask = question(4)
    features *= torch.tensor([1.0, 1e-3, 50, 1]).view(4, 1, 1, 1)
    part = make("mmtok", tokens=12)
    together = part.kept(features, text, mask)
    for row, kept in enumerate(together):
        words = int(mask[row].sum())
        one = slice(row, row + 1)
        assert part.kept(features[one], text[one, :words])[0].equal(kept)


def test_mmtok_without_patches_takes_what_each_word_likes():
    """One patch behind the projector for each word, and no more tokens than words."""
    features, text, _ = question(2)
    patches = features.shape[1] * features.shape[2]
    liked = torch.stack([torch.randperm(patches)[:5] for _ in range(2)])
    flat = features.flatten(1, 2)
    for row in range(2):
        flat[row, liked[row], DIM:] = 3 * text[row]
    features = flat.view_as(features)
    part = make("mmtok", tokens=5, patch_weight=0, text_temperature=0.001)
    assert part.kept(features, text).equal(liked.sort(1).values)


def test_mmtok_says_what_it_lacks():
    features, text, _ = question(2)
    part = make("mmtok", tokens=5)
    with pytest.raises(UsageError, match=r"\A(?!.*\n)mmtok: features have \d+ channels: expected"):
        part(features[..., :DIM], text)
    with pytest.raises(UsageError, match="text_temperature=0.0: must be more than 0"):
        make("mmtok", text_temperature=0.0)


@pytest.mark.parametrize(("count", "spaced_count"), [(12, 0), (12, 4), (12, 12), (54, 27)])
def test_prumerge_plus_has_evenly_spaced_patches(count, spaced_count):
    """Spaced over what attention has left: as many as are wanted, none twice."""
    attention = torch.rand(3, 54)
    centres = choose_centres(attention, count, spaced_count)
    assert centres.shape == (3, count) and (centres.diff() > 0).all()
    for row, kept in zip(attention, centres):
        attended = row.argsort(descending=True)[: count - spaced_count]
        assert set(attended.tolist()) <= set(kept.tolist())
        others = [patch for patch in range(54) if patch not in attended]
        places = [others.index(patch) for patch in kept.tolist() if patch in others]
        assert len(places) == spaced_count
        if spaced_count > 1:
            steps = torch.tensor(places).diff()
            assert steps.max() - steps.min() <= 1
