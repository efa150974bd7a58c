"""Training-free methods against what their public functions made of random tensors.

Each file of vectors names the function, the seed and the sizes in its metadata; inputs stand beside outputs.
"""

from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

import compressors
from compressors.prunesid import choose_by_components
from compressors.visionselector import soften_choice

FOLDER = Path(__file__).parent / "methods"
SIDE = 12


def as_maps(patches, side=SIDE):
    """(B, N, ...) -> (B, H, W, ...)."""
    return patches.unflatten(1, (side, side))


def check_kept(name, features, vectors, budget, **knobs):
    """What is kept is what the public function kept; an image alone has the same."""
    tokens, *_ = map(int, budget.split("_"))
    dim = vectors["states"].shape[-1] if "states" in vectors else 1
    part = compressors.create(name, dim=dim, tokens=tokens, **knobs)
    kept = part.kept(features)
    assert kept.tolist() == vectors[f"kept_{budget}"].tolist()
    for image, row in zip(features.split(1), kept):
        assert part.kept(image)[0].equal(row)
    return part


def read_attended(name):
    """Vectors of patches and what CLS pays them, and the features made of them."""
    vectors = load_file(FOLDER / f"{name}.safetensors")
    return vectors, torch.cat([as_maps(vectors["states"]), as_maps(vectors["attention"]).unsqueeze(-1)], -1)


@pytest.mark.parametrize("budget", ["16_50", "36_50", "72_50", "72_25", "36_100", "40_0"])
def test_vispruner(budget):
    vectors, features = read_attended("vispruner")
    check_kept("vispruner", features, vectors, budget, important=int(budget.split("_")[1]) / 100)


@pytest.mark.parametrize("budget", ["16_100", "36_100", "72_100", "36_0", "36_200"])
def test_scope(budget):
    vectors, features = read_attended("scope")
    check_kept("scope", features, vectors, budget, saliency=int(budget.split("_")[1]) / 100)


@pytest.mark.parametrize("budget", ["16_16", "36_16", "72_16", "36_10", "20_7"])
def test_holov(budget):
    vectors, features = read_attended("holov")
    check_kept("holov", features, vectors, budget, strips=int(budget.split("_")[1]))


@pytest.mark.parametrize("budget", ["16_50_2", "36_50_2", "72_50_2", "36_0_2", "36_200_2", "36_50_10"])
def test_mmtok(budget):
    vectors = load_file(FOLDER / "mmtok.safetensors")
    features = torch.cat([as_maps(vectors["states"]), as_maps(vectors["projected"])], -1)
    text = vectors["text"]
    mask = torch.arange(text.shape[1]) < vectors["words"].unsqueeze(1)
    tokens, weight, temperature = map(int, budget.split("_"))
    part = compressors.create(
        "mmtok", dim=8, tokens=tokens, patch_weight=weight / 100, text_temperature=temperature / 100
    )
    kept = part.kept(features, text, mask)
    assert kept.tolist() == vectors[f"kept_{budget}"].tolist()
    # a row alone, without its padding, has the same
    for row, words in enumerate(vectors["words"].tolist()):
        alone = part.kept(features[row : row + 1], text[row : row + 1, :words])
        assert alone[0].equal(kept[row])


@pytest.mark.parametrize("budget", [16, 25, 36, 72])
def test_prunesid(budget):
    """Of the paper's tokens CLS is one, the patches are fewer by one."""
    vectors = load_file(FOLDER / "prunesid.safetensors")
    kept = choose_by_components(vectors["states"], vectors["attention"], budget - 1, budget)
    assert kept.tolist() == vectors[f"kept_{budget}"].tolist()


def stack_maps(*maps):
    """Maps of 24x24 patches (B, N) or (B, N, C), in the channels."""
    return torch.cat([as_maps(m.view(*m.shape[:2], -1), 24) for m in maps], -1)


@pytest.mark.parametrize("budget", ["64", "128", "192"])
def test_hiprune(budget):
    vectors = load_file(FOLDER / "hiprune.safetensors")
    shallow, deep = vectors["shallow"], vectors["deep"]
    check_kept("hiprune", stack_maps(torch.zeros_like(deep), shallow, deep), vectors, budget)


@pytest.mark.parametrize("budget", ["64", "96", "192"])
def test_vscan(budget):
    vectors = load_file(FOLDER / "vscan.safetensors")
    features = stack_maps(vectors["states"], vectors["shallow"], vectors["deep"])
    part = check_kept("vscan", features, vectors, budget)
    torch.testing.assert_close(part(features), vectors[f"tokens_{budget}"])


@pytest.mark.parametrize(("dominant", "contextual"), [(14, 3), (8, 8), (62, 10)])
def test_visionzip(dominant, contextual):
    vectors = load_file(FOLDER / "visionzip.safetensors")
    states = vectors["states"]
    cls = states[:, :1].expand(-1, SIDE * SIDE, -1)
    features = torch.cat(
        [
            as_maps(states[:, 1:]),
            as_maps(vectors["attention"][:, 1:]).unsqueeze(-1),
            as_maps(vectors["keys"][:, 1:]),
            as_maps(cls),
        ],
        -1,
    )
    count = dominant + contextual
    part = compressors.create(
        "visionzip", dim=states.shape[-1], tokens=count, context=contextual / count, cls=True
    )
    tokens = part(features)
    torch.testing.assert_close(tokens, vectors[f"tokens_{dominant}_{contextual}"])
    # rows are their own: the released code works on the batch as a whole
    alone = torch.cat([part(image) for image in features.split(1)])
    torch.testing.assert_close(alone, tokens)
    # without CLS one more patch is dominant, the rest is as it was
    plain = compressors.create(
        "visionzip", dim=states.shape[-1], tokens=count - 1, context=contextual / (count - 1)
    )
    torch.testing.assert_close(plain(features[..., : -states.shape[-1]]), tokens[:, 1:])


def test_visionzip_s_pictures_are_of_its_tokens():
    vectors = load_file(FOLDER / "visionzip.safetensors")
    features = torch.cat(
        [
            as_maps(vectors["states"][:, 1:]),
            as_maps(vectors["attention"][:, 1:]).unsqueeze(-1),
            as_maps(vectors["keys"][:, 1:]),
        ],
        -1,
    )
    part = compressors.create("visionzip", dim=vectors["states"].shape[-1], tokens=16, context=0)
    weights = rearrange(part.attention(features), "b h w -> b (h w)")
    assert ((weights == 0) | (weights == 1 / 16)).all()
    expected = vectors["attention"][:, 1:].topk(16).indices.sort().values
    assert torch.equal(weights.nonzero()[:, 1].view(2, 16), expected)


@pytest.mark.parametrize("count", [16, 40, 143])
def test_visionselector(count):
    """Scores, the weights of the softened choice with their gradient, and the hard choice."""
    vectors = load_file(FOLDER / "visionselector.safetensors")
    part = compressors.create("visionselector", dim=12, width=16, tokens=count).eval()
    for ours, theirs in ((part.query, "q_proj"), (part.key, "k_proj")):
        ours.load_state_dict({name: vectors[f"weight/{theirs}.{name}"] for name in ("weight", "bias")})
    scores = part.score_patches(vectors["features"])
    torch.testing.assert_close(scores, vectors["scores"], rtol=1e-4, atol=1e-5)
    scores = vectors["scores"].requires_grad_()
    weights = soften_choice(scores, count)
    torch.testing.assert_close(weights, vectors[f"weights_{count}"], rtol=1e-4, atol=1e-5)
    (gradient,) = torch.autograd.grad(weights, scores, vectors["upstream"])
    torch.testing.assert_close(gradient, vectors[f"gradient_{count}"], rtol=1e-3, atol=1e-5)
    assert torch.equal(part.kept(as_maps(vectors["features"])), vectors[f"kept_{count}"])


@pytest.mark.parametrize("budget", ["16_1", "36_1", "72_1", "16_2", "36_2", "72_2"])
def test_cdpruner(budget):
    vectors = load_file(FOLDER / "cdpruner.safetensors")
    maps = [as_maps(vectors[name]) for name in ("states", "joint", "projected")]
    tokens, pieces = map(int, budget.split("_"))
    part = compressors.create("cdpruner", dim=8, tokens=tokens)
    features = torch.cat(maps, -1)
    mask = torch.arange(2).expand(2, -1) < pieces
    kept = part.kept(features, vectors["text"], mask)
    assert kept.tolist() == vectors[f"kept_{budget}"].tolist()
    for row in range(2):  # alone, and without the piece that is not there
        alone = part.kept(features[row : row + 1], vectors["text"][row : row + 1, :pieces])
        assert alone[0].equal(kept[row])


def read_trim():
    """Vectors, and the features made of them."""
    vectors = load_file(FOLDER / "trim.safetensors")
    return vectors, torch.cat([as_maps(vectors["states"]), as_maps(vectors["joint"])], -1)


@pytest.mark.parametrize("tokens", [16, 36, 72])
def test_trim(tokens):
    vectors, features = read_trim()
    part = compressors.create("trim", dim=8, tokens=tokens)
    torch.testing.assert_close(part(features, vectors["text"]), vectors[f"tokens_{tokens}_mean"])
    plain = compressors.create("trim", dim=8, tokens=tokens - 1, aggregate=False)
    assert plain(features, vectors["text"]).equal(part(features, vectors["text"])[:, :-1])


def test_trim_by_quartiles():
    """As many outliers as the public function finds, before the mean; an image's own, within a batch."""
    vectors, features = read_trim()
    tokens = compressors.create("trim", dim=8, tokens=36, iqr=1.5)(features, vectors["text"])
    for row, count in enumerate(vectors["outlier_counts"].tolist()):
        expected = vectors[f"tokens_outliers_{row}"]
        assert 1 < count < 36
        torch.testing.assert_close(tokens[row, :count], expected)
        torch.testing.assert_close(tokens[row, count:], expected[-1:].expand(36 - count, -1))
