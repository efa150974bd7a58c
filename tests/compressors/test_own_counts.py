"""Compressors whose images have token counts of their own, by their content."""

import pytest
import torch
import torch.nn.functional as F
from own_counts import VARYING

import compressors
from compressors.cues import count_channels
from compressors.errors import UsageError
from compressors.selection import cover_targets

DIM, LLM_DIM, JOINT_DIM = 6, 8, 5
HEIGHT, WIDTH = 6, 9
PATCHES = HEIGHT * WIDTH
every_one = pytest.mark.parametrize("name", VARYING)


def make(name, **knobs):
    return compressors.create(name, dim=DIM, llm_dim=LLM_DIM, **{**VARYING[name], "tokens": 20, **knobs})


def image(part, batch=4):
    """Features and question: the first image's patches are nearly alike, the last one's are not."""
    torch.manual_seed(0)
    channels = count_channels(DIM, (), part.needs_cues, 4, JOINT_DIM) + LLM_DIM * part.needs_projected
    variety = torch.linspace(0.05, 1, batch).view(-1, 1, 1, 1)
    features = torch.randn(1, 1, 1, channels) + variety * torch.randn(batch, HEIGHT, WIDTH, channels)
    if "attention" in part.needs_cues:
        features[..., DIM] = features[..., DIM].flatten(1).softmax(-1).view(batch, HEIGHT, WIDTH)
    if not part.reads_question:
        return (features,)
    return features, torch.randn(batch, 3, JOINT_DIM if part.needs_tower_text else LLM_DIM)


@every_one
def test_counts_differ_within_the_budget(name):
    part = make(name)
    given = image(part)
    tokens, is_there, kept = part(*given), part.present(*given), part.kept(*given)
    assert tokens.shape[1] == is_there.shape[1] == kept.shape[1] == part.num_tokens(HEIGHT, WIDTH) == 20
    assert is_there.dtype == torch.bool and is_there.any(1).all()
    assert len(set(is_there.sum(1).tolist())) > 1
    assert tokens.isfinite().all()
    # what an image has is in no other's hands
    for row in range(len(tokens)):
        alone = [one[row : row + 1] for one in given]
        assert part.present(*alone)[0].equal(is_there[row])
        assert part(*alone)[0][is_there[row]].equal(tokens[row][is_there[row]])
    places = kept.masked_fill(~is_there, -1)
    for row, of_image in enumerate(places):
        chosen = of_image[of_image >= 0].tolist()
        assert chosen == sorted(set(chosen))
        weights = part.attention(*[one[row : row + 1] for one in given])
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))


@every_one
def test_with_one_number_for_all_it_is_as_before(name):
    """And no shorter rule chooses others: what there is, is what a longer choice begins with."""
    part = make(name)
    plain = compressors.create(name, dim=DIM, llm_dim=LLM_DIM, tokens=20)
    given = image(part)
    assert not plain.varies and plain.present(*given) is None and part.varies
    for own, all_of_it in zip(part.kept(*given).tolist(), plain.kept(*given).tolist()):
        assert set(own) - {-1} <= set(all_of_it)


@every_one
def test_positions_cannot_be_kept(name):
    with pytest.raises(UsageError, match=f"compressor '{name}': positions=keep: .* as many tokens"):
        make(name, positions="keep")
    with pytest.raises(UsageError, match="token counts of their own"):
        compressors.create("matryoshka", dim=DIM, llm_dim=LLM_DIM, host=name, knobs=VARYING[name])


def test_coverage_is_reached_and_not_passed():
    """By the mean of each patch's cosine with the kept one that is most like it."""
    part = make("scope", coverage=0.8, saliency=0.0, tokens=PATCHES)
    (features,) = image(part)
    unit = F.normalize(features[..., :DIM].flatten(1, 2), dim=-1)
    for row, kept in zip(unit, part.kept(features)):
        chosen = kept[kept >= 0]

        def cover(places, row=row):
            return (row @ row[places].T).clamp(min=0).amax(-1).mean().item()

        assert cover(chosen) >= 0.8
        if len(chosen) > 1:
            before = [cover(chosen[chosen != place]) for place in chosen]
            assert min(before) < 0.8


def test_targets_that_one_candidate_covers():
    coverage = torch.tensor([[[1.0, 1.0], [0.5, 0.2], [0.1, 0.9]], [[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]])
    assert cover_targets(coverage, None, 3, 0.9).tolist() == [[0, -1, -1], [0, 2, -1]]
    assert cover_targets(coverage, None, 1, 0.9).tolist() == [[0], [0]]
    nothing = torch.zeros(1, 3, 2)
    assert cover_targets(nothing, None, 2, 1.0).tolist() == [[0, -1]]


def test_trims_rule_is_the_papers():
    """As many patches as there are outliers, all others in one mean; evenly spaced without a question."""
    part = make("trim", iqr=None)
    features, text = (one[-1:] for one in image(part))
    joint = features[..., DIM : DIM + JOINT_DIM].flatten(1, 2)
    scores = (-(joint @ text.mean(1).T)).squeeze(-1).softmax(-1)[0]
    first, third = scores.quantile(0.25), scores.quantile(0.75)
    outliers = (scores > third + 1.5 * (third - first)).nonzero().flatten()
    assert 0 < len(outliers) < 19
    is_there = part.present(features, text)[0]
    tokens = part(features, text)[0][is_there]
    patches = features[..., :DIM].flatten(1, 2)[0]
    assert tokens[:-1].equal(patches[outliers])
    others = torch.ones(PATCHES, dtype=torch.bool).scatter(0, outliers, False)
    torch.testing.assert_close(tokens[-1], patches[others].mean(0))
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    assert part.present(features, text, nothing).all()


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("trim", {"aggregate": False}, "trim: iqr leaves places to the mean"),
        ("scope", {"coverage": 0.0}, "coverage=0.0: must be a share"),
        ("mmtok", {"coverage": 1.5}, "coverage=1.5: must be a share"),
    ],
)
def test_wrong_knobs(name, knobs, message):
    with pytest.raises(UsageError, match=message):
        make(name, **knobs)
