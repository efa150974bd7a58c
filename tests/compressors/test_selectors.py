"""tome, prumerge and divprune: their invariants, and each against a slow loop written from its definition."""

import pytest
import torch
import torch.nn.functional as F

import compressors
from compressors import UsageError
from compressors.divprune import choose_most_diverse
from compressors.grid import count_budget
from compressors.prumerge import average_received_attention, make_merge_weights
from compressors.selection import choose_largest
from compressors.tome import average_groups, find_groups

SELECTORS = ["tome", "prumerge", "divprune"]
every_selector = pytest.mark.parametrize("name", SELECTORS)


def make(name, **knobs):
    return compressors.create(name, dim=8, **knobs)


def image(height=6, width=9, batch=2):
    return torch.randn(batch, height, width, 8)


def as_set(tokens):
    """Tokens of one image in an order of their own: sorted by their first channel."""
    return tokens[tokens[:, 0].argsort()]


@every_selector
def test_rate_1_is_identity(name):
    features = image()
    torch.testing.assert_close(make(name, rate=1)(features), features.flatten(1, 2))


@pytest.mark.parametrize(
    "rate, policy, kept",
    [
        (3, "error", 6),
        (2, "floor", 12),
        (4, "ceil", 6),
        (5, "pad", 4),
    ],
)
@every_selector
def test_size_of_what_is_kept(name, rate, policy, kept):
    part = make(name, rate=rate, grid_policy=policy)
    assert part(image()).shape[1] == part.num_tokens(6, 9) == kept


@pytest.mark.parametrize("name", ["prumerge", "divprune"])
def test_shuffled_patches_give_the_same_tokens(name):
    patches, part = image(batch=1).flatten(1, 2), make(name)
    one, other = (part(x.view(1, 6, 9, 8))[0] for x in (patches, patches[:, torch.randperm(54)]))
    torch.testing.assert_close(as_set(one), as_set(other))


def test_tome_gives_the_same_tokens_when_both_sets_are_shuffled():
    """In one step: a second one splits by the order that the first left."""
    patches = image(batch=1).flatten(1, 2)
    order = torch.stack([2 * torch.randperm(27), 2 * torch.randperm(27) + 1], 1).flatten()
    one, other = (average_groups(x, find_groups(x, 30)[0], 30)[0] for x in (patches, patches[:, order]))
    torch.testing.assert_close(as_set(one), as_set(other))


@every_selector
def test_one_image_alone_is_the_same(name):
    part, features = make(name), image(12, 12, 5)
    many = part(features)
    for i in range(5):
        torch.testing.assert_close(part(features[i : i + 1])[0], many[i])


@every_selector
def test_ties_go_to_the_patch_that_comes_first(name):
    """Patches of three kinds, alike within each: the choice is the same for every image of a batch."""
    kinds = torch.randn(3, 8)[torch.arange(36) % 3].view(1, 6, 6, 8)
    part = make(name, rate=2)
    tokens, weights = part(kinds.expand(4, -1, -1, -1)), part.attention(kinds.expand(4, -1, -1, -1))
    assert all(tokens[i].equal(tokens[0]) and weights[i].equal(weights[0]) for i in range(4))


def test_ties_of_each():
    same = torch.ones(1, 12, 8)
    assert choose_most_diverse(same, 4).tolist() == [[0, 1, 2, 3]]
    centres = choose_largest(average_received_attention(same), 3)
    kept = make_merge_weights(average_received_attention(same), same, centres, 2)[0]
    assert [row.nonzero().flatten().tolist() for row in kept] == [[0, 3, 4], [1, 3, 4], [2, 3, 4]]
    # each even token merges into the first odd one, the first even tokens first
    group, kept = find_groups(same, 10)
    assert group.tolist() == [[0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]
    assert kept.tolist() == [[1, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("name", ["tome", "divprune"])
def test_attention_is_where_the_tokens_come_from(name):
    part, features = make(name), image()
    weighted = torch.einsum("bhw,bhwc->bc", part.attention(features), features)
    torch.testing.assert_close(weighted, part(features).mean(1))


def tome_by_loop(patches, count):
    """Tokens with their sizes, merged pair by pair: the most similar pairs first, sizes as weights."""
    tokens = [(patch, 1) for patch in patches]
    while len(tokens) > count:
        unit = [F.normalize(token, dim=0) for token, _ in tokens]
        pairs = []
        for i in range(0, len(tokens), 2):
            best = max(range(1, len(tokens), 2), key=lambda j: unit[i] @ unit[j])
            pairs.append((-(unit[i] @ unit[best]).item(), i, best))
        merges = sorted(pairs)[: min(len(tokens) // 2, len(tokens) - count)]
        for _, source, target in merges:
            (x, n), (y, m) = tokens[source], tokens[target]
            tokens[target] = ((n * x + m * y) / (n + m), n + m)
        gone = {source for _, source, _ in merges}
        tokens = [token for i, token in enumerate(tokens) if i not in gone]
    return torch.stack([token for token, _ in tokens])


@pytest.mark.parametrize("count", [50, 27, 13, 6, 1])
def test_tome_is_a_loop_over_pairs(count):
    patches = image().flatten(1, 2)
    for tokens, row in zip(average_groups(patches, find_groups(patches, count)[0], count), patches):
        torch.testing.assert_close(tokens, tome_by_loop(row, count))


def test_tome_merges_many_large_patches_in_half_precision():
    """The sum of a group is beyond float16's largest number, its mean is not."""
    features = torch.full((1, 6, 9, 8), 4000.0, dtype=torch.float16)
    assert make("tome")(features).equal(features.flatten(1, 2)[:, :6])


def divprune_by_loop(patches, count):
    distance = [[1 - F.cosine_similarity(x, y, dim=0).item() for y in patches] for x in patches]
    chosen = []
    while len(chosen) < count:
        left = [i for i in range(len(patches)) if i not in chosen]
        others = chosen or range(len(patches))
        chosen.append(max(left, key=lambda i: min(distance[i][j] for j in others if j != i)))
    return sorted(chosen)


@pytest.mark.parametrize("count", [1, 2, 6, 20])
def test_divprune_is_a_greedy_loop(count):
    patches = image().flatten(1, 2)
    assert choose_most_diverse(patches, count).tolist() == [divprune_by_loop(row, count) for row in patches]


def test_divprune_covers_the_clusters():
    """Of four tight clusters one patch each."""
    centres = torch.eye(4, 8)
    patches = (centres.repeat_interleave(9, 0) + 0.01 * torch.randn(36, 8)).unsqueeze(0)
    assert (choose_most_diverse(patches, 4)[0] // 9).tolist() == [0, 1, 2, 3]


def test_received_attention_leaves_a_patch_itself_out():
    tokens = torch.randn(1, 5, 8)
    states = F.layer_norm(tokens[0], (8,))
    expected = torch.zeros(5)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        expected[others] += (states[others] @ states[i] / 8**0.5).softmax(0) / 5
    torch.testing.assert_close(average_received_attention(tokens)[0], expected)
    torch.testing.assert_close(average_received_attention(tokens[:, :1]), torch.ones(1, 1))


@pytest.mark.parametrize("neighbours", [0, 3, 100])
def test_prumerge_is_its_formula(neighbours):
    features = image(batch=1)
    patches, tokens = features[0].flatten(0, 1), make("prumerge", neighbours=neighbours)(features)[0]
    attention = average_received_attention(patches.unsqueeze(0))[0]
    kept = sorted(range(54), key=lambda i: -attention[i])[:6]
    removed = [i for i in range(54) if i not in kept]
    for token, p in zip(tokens, sorted(kept)):
        near = sorted(removed, key=lambda q: -F.cosine_similarity(patches[p], patches[q], dim=0))[:neighbours]
        expected = patches[p] + sum(attention[q] * patches[q] for q in near)
        torch.testing.assert_close(token, expected)


@pytest.mark.parametrize("name", ["prumerge", "tome"])
def test_cues_take_the_place_of_features(name):
    """The features' own attention and keys change nothing, others do."""
    features = image()
    patches = features.flatten(1, 2)
    own = {"attention": average_received_attention(patches).view(2, 6, 9, 1), "keys": features}
    part = make(name, cues=True)
    cued = torch.cat([features, *(own[cue] for cue in part.needs_cues)], -1)
    torch.testing.assert_close(part(cued), make(name)(features))
    assert part.kept(cued).equal(make(name).kept(features))
    other = torch.cat([cued[..., :-8], torch.randn_like(features)], -1)
    assert not part(other).equal(part(cued))
    with pytest.raises(UsageError, match=r"features have 8 channels: expected 8 and the cues .*keys behind"):
        part(features)


def test_tokens_stand_in_raster_order():
    features = image()
    for name in SELECTORS:
        kept = make(name).kept(features)
        assert (kept.diff() > 0).all(), name
    for group, kept in zip(*find_groups(features.flatten(1, 2), 6)):
        assert group[kept].tolist() == list(range(6))


@pytest.mark.parametrize("side", [9, 14, 20, 24, 27])
def test_a_share_of_the_patches_is_exact(side):
    """Rounded down, and never for want of a digit: 0.29 * 400 is a little less than 116 in floating point."""
    patches = side * side
    for count in range(1, patches):
        assert count_budget(count / patches, side, side) == count
    assert count_budget(0.29, 20, 20) == 116
    assert count_budget((count - 0.01) / patches, side, side) == count - 1
