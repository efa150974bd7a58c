"""Compressors that compare patches with the question by the tower's text encoder: what can go wrong."""

import pytest
import torch
import torch.nn.functional as F

import compressors
from compressors.base import CompressorRegistry
from compressors.cdpruner import choose_by_determinant, scale_relevance
from compressors.errors import UsageError
from compressors.trim import find_outliers, space_evenly

DIM, JOINT_DIM, LLM_DIM = 6, 5, 24
HEIGHT, WIDTH = 6, 9
PATCHES = HEIGHT * WIDTH


def make(name, **knobs):
    return compressors.create(name, dim=DIM, **knobs)


def image(batch=2, height=HEIGHT, width=WIDTH, projected=True):
    """Patches, the same in the space of the text, and behind the projector; and a question."""
    channels = DIM + JOINT_DIM + (LLM_DIM if projected else 0)
    return torch.randn(batch, height, width, channels), torch.randn(batch, 1, JOINT_DIM)


def list_by_determinant(features, text, count):
    """One image's, by determinants: the patch with which that of the chosen ones is largest."""
    flat = features.flatten(0, 1).double()
    joint = F.normalize(flat[:, DIM : DIM + JOINT_DIM], dim=-1)
    scores = -(joint @ F.normalize(text[0].double(), dim=-1))
    relevance = (scores - scores.min() + 1e-6) / (scores.max() - scores.min())
    unit = F.normalize(flat[:, DIM + JOINT_DIM :], dim=-1) * relevance[:, None]
    kernel = unit @ unit.T
    chosen = []
    for _ in range(count):
        others = [i for i in range(len(kernel)) if i not in chosen]
        chosen.append(
            max(others, key=lambda i: torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]).item())
        )
    return sorted(chosen)


def test_cdpruner_is_its_determinants():
    features, text = image()
    kept = make("cdpruner", tokens=9).kept(features, text)
    for one, question, row in zip(features, text, kept):
        assert row.tolist() == list_by_determinant(one, question, 9)


@pytest.mark.parametrize("name", ["cdpruner", "trim"])
def test_an_image_is_not_scaled_by_another(name):
    """The released code of one takes least and most of the whole batch, of the other the quartiles."""
    features, text = image()
    features[1] *= 50
    part = make(name, tokens=9, **({"iqr": 1.5} if name == "trim" else {}))
    kept = part.kept(features, text)
    for row in range(2):
        assert part.kept(features[row : row + 1], text[row : row + 1])[0].equal(kept[row])


def test_what_is_least_like_the_question_is_relevant():
    """Of patches alike behind the projector but two, and of significance."""
    features, text = image(1)
    features[..., DIM + JOINT_DIM :] = 1
    joint = features.view(1, PATCHES, -1)[..., DIM : DIM + JOINT_DIM]
    joint[:] = text
    joint[0, 17] = -text[0]
    assert make("cdpruner", tokens=1).kept(features, text).tolist() == [[17]]
    assert make("trim", tokens=1, aggregate=False).kept(features, text).tolist() == [[17]]


def test_more_tokens_than_directions():
    """The released code divides by zero then; here the most relevant patches follow."""
    tokens = torch.randn(1, PATCHES, 3)
    relevance = torch.rand(1, PATCHES).clamp(min=0.1)
    kept = choose_by_determinant(tokens, relevance, 20)[0].tolist()
    assert len(set(kept)) == 20
    first = set(choose_by_determinant(tokens, relevance, 3)[0].tolist())
    others = relevance[0].clone()
    others[list(first)] = 0
    assert set(kept) == first | set(others.topk(17).indices.tolist())
    same = choose_by_determinant(torch.ones(1, PATCHES, 3), torch.ones(1, PATCHES), 5)
    assert same.tolist() == [[0, 1, 2, 3, 4]]


def test_without_a_question_all_patches_are_as_relevant():
    features, text = image()
    nothing = torch.zeros(2, 1, dtype=torch.bool)
    assert scale_relevance(torch.zeros(1, 4)).tolist() == [[1.0] * 4]
    kept = make("cdpruner", tokens=9).kept(features, text, nothing)
    projected = features[..., DIM + JOINT_DIM :].flatten(1, 2)
    assert kept.equal(choose_by_determinant(projected, torch.ones(2, PATCHES), 9))
    evenly = make("trim", tokens=10).kept(features, text, nothing)
    assert evenly.tolist() == [[*range(0, PATCHES, 6), -1]] * 2
    assert space_evenly(5, 2, torch.device("cpu")).tolist() == [1, 0, 1, 0, 0]


def test_products_that_are_large_do_not_tie():
    """Of two patches whose share of the softmax is nothing in float32 the more significant one is kept."""
    features, text = image(1, projected=False)
    joint = features.view(1, PATCHES, -1)[..., DIM:]
    joint[:] = 300 * text
    joint[0, 5] = -300 * text[0]
    joint[0, 40] = 200 * text[0]
    kept = make("trim", tokens=2, aggregate=False).kept(features, 10 * text)
    assert kept.tolist() == [[5, 40]]


def test_trim_has_the_mean_of_what_it_leaves_out():
    features, text = image(projected=False)
    part = make("trim", tokens=10)
    tokens, kept = part(features, text), part.kept(features, text)
    patches = features[..., :DIM].flatten(1, 2)
    for row in range(2):
        others = [patch for patch in range(PATCHES) if patch not in kept[row].tolist()]
        assert tokens[row, :9].equal(patches[row, kept[row, :9]])
        torch.testing.assert_close(tokens[row, 9], patches[row, others].mean(0))


def test_outliers_are_beyond_the_quartiles():
    """And where there are none, all tokens are the mean."""
    scores = torch.tensor([[1.0, 2, 3, 4, 100], [1, 2, 3, 4, 5]])
    assert find_outliers(scores, 1.5).tolist() == [[False] * 4 + [True], [False] * 5]
    features, text = image(1, projected=False)
    features[..., DIM:] = text.view(1, 1, 1, -1)
    tokens = make("trim", tokens=4, iqr=1.5)(features, text)
    mean = features[..., :DIM].mean((1, 2))
    torch.testing.assert_close(tokens, mean.unsqueeze(1).expand(-1, 4, -1))


def test_trim_needs_a_place_for_the_mean():
    with pytest.raises(UsageError, match="take aggregate=true"):
        make("trim", iqr=1.5, aggregate=False)
    with pytest.raises(UsageError, match="iqr=-1"):
        make("trim", iqr=-1.0)


@pytest.mark.parametrize("name", ["cdpruner", "trim"])
def test_features_without_the_space_of_the_text_are_refused(name):
    with pytest.raises(UsageError, match=f"{name}: features have 6 channels"):
        make(name)(torch.randn(1, 6, 6, DIM), torch.randn(1, 1, JOINT_DIM))


@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (
            {"needs_tower_text": True},
            "needs_tower_text=True: leave that out, it follows from the cue 'joint'",
        ),
        ({"needs_tower_text": False, "needs_cues": ("joint",)}, "leave that out"),
        ({"needs_text": True, "needs_cues": ("joint",)}, "by the tower's text encoder or by the LLM"),
        ({"needs_cues": ("joint", "attention")}, "list it last"),
    ],
)
def test_a_need_is_said_once(needs, message):
    """Otherwise a compressor of one's own would fail as late as it meets a model."""
    registry = CompressorRegistry("compressor", context=("dim",))

    def build(self, dim):
        compressors.Compressor.__init__(self)
        self.out_dim = dim

    own = type("Own", (compressors.Compressor,), {"__init__": build, **needs})
    registry.register("own")(own)
    with pytest.raises(UsageError, match=message) as refused:
        registry.create("own", dim=DIM)
    assert "\n" not in str(refused.value) and "compressor 'own'" in str(refused.value)
    own_too = type(
        "Own", (compressors.Compressor,), {"__init__": build, "needs_cues": ("attention", "joint")}
    )
    registry.register("own_too")(own_too)
    assert registry.create("own_too", dim=DIM).needs_tower_text
