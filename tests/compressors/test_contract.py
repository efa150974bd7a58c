"""What every registered compressor promises; a new one is tested by being registered."""

import copy
import inspect
import typing

import pytest
import torch
from torch import Tensor

import compressors
from compressors import Compressor, UsageError
from compressors.base import registry
from compressors.cues import ATTENTION, RECEIVED, count_channels, parse_cue

DIM, LLM_DIM, TEXT, KEY_DIM, JOINT_DIM = 12, 16, 6, 4, 10
GRIDS = [(12, 12), (9, 9), (8, 8), (7, 10), (12, 9), (5, 4)]
SMALL = {"width": 16, "heads": 4, "num_layers": 3, "num_queries": 5}  # where a method has such a knob
# For a wrapper: one without a grid that reads text, one that projects and reads several levels.
HOSTS = {"qformer": {**SMALL, "text": True}, "token_packer": {"heads": 4, "levels": (1, 2)}}


def alternatives(name: str) -> list[dict]:
    """The defaults, then each choice, switch and rate that a method offers, one at a time."""
    found: list[dict] = [{}]
    knobs = outcome(compressors.knobs, name)
    if knobs is UsageError:  # of an outside package, and broken: it fails as a case, and leaves the others be
        return found
    for knob, parameter in knobs.items():
        hint = parameter.annotation
        if typing.get_origin(hint) is typing.Literal:
            found += [{knob: option} for option in typing.get_args(hint) if option != parameter.default]
        elif hint is bool:
            found.append({knob: not parameter.default})
        elif knob == "rate":
            found += [{knob: rate} for rate in (1, 2, 3, 4) if rate != parameter.default]
        elif knob == "levels":
            found.append({knob: (2, -1)})
        elif knob == "coverage":
            found.append({knob: 0.5})
        elif knob == "host":
            found += [{knob: host, "knobs": knobs} for host, knobs in HOSTS.items()]
    return found


def outcome(function, *arguments):
    """The result, or UsageError as the answer."""
    try:
        return function(*arguments)
    except UsageError:
        return UsageError


CASES = [
    pytest.param(name, knobs, id="-".join([name, *(f"{k}={v}" for k, v in knobs.items())]))
    for name in compressors.names()
    for knobs in alternatives(name)
]
every_case = pytest.mark.parametrize("name, knobs", CASES)


def cases_with(knob: str) -> list:
    """Of the methods that have it."""
    knobs = {name: outcome(compressors.knobs, name) for name in compressors.names()}
    found = {name for name, theirs in knobs.items() if theirs is not UsageError and knob in theirs}
    return [case for case in CASES if case.values[0] in found]


# of ours, those whose tokens have no shares of patches; and those whose tokens stand at patches
OURS = set(compressors.names()) - set(registry.entry_points)
NO_ATTENTION = {
    "c_abstractor",
    "conv_downsample",
    "dct",
    "downsample",
    "identity",
    "ldp",
    "ldpv2",
    "patch_merger",
    "pixel_shuffle",
}
KEEPS = {
    "cdpruner",
    "divprune",
    "downsample",
    "hiprune",
    "holov",
    "identity",
    "mmtok",
    "prumerge",
    "prunesid",
    "random",
    "scope",
    "tome",
    "trim",
    "uniform",
    "visionselector",
    "visionzip",
    "vispruner",
    "vscan",
}
# what shifts all logits of a softmax alike, or all scores of a choice
SHIFTS = ("key.bias", "key.3.bias", "key_norm.bias", "scorer.2.bias", "scorer.3.bias")


def build(name: str, knobs: dict, seed: int = 0) -> Compressor:
    torch.manual_seed(seed)
    small = {k: v for k, v in SMALL.items() if k in compressors.knobs(name)}
    return compressors.create(name, dim=DIM, llm_dim=LLM_DIM, **{**small, **knobs}).eval()


def inputs(part: Compressor, grid: tuple[int, int] = (12, 12), batch: int = 3) -> tuple[Tensor, ...]:
    """Features and cues, and for a text-aware one embeddings and a ragged mask."""
    generator = torch.Generator().manual_seed(1)
    channels = count_channels(DIM, part.needs_levels, (), KEY_DIM)
    maps = [torch.randn(batch, *grid, channels, generator=generator)]
    for cue in part.needs_cues:
        channels = count_channels(0, (), (cue,), KEY_DIM, JOINT_DIM) or DIM  # CLS has the tower's width
        noise = torch.randn(batch, *grid, channels, generator=generator)
        is_shared_out = parse_cue(cue).kind in (ATTENTION, RECEIVED)
        maps.append(noise.flatten(1).softmax(-1).view_as(noise) if is_shared_out else noise)
    if part.needs_projected:
        maps.append(torch.randn(batch, *grid, LLM_DIM, generator=generator))
    features = torch.cat(maps, -1)
    if not part.reads_question:
        return (features,)
    mask = torch.arange(TEXT) < torch.tensor([TEXT, 2, 4, 1])[:batch, None]
    width = LLM_DIM if part.needs_text else JOINT_DIM
    return features, torch.randn(batch, TEXT, width, generator=generator), mask


@pytest.mark.parametrize("name", compressors.names())
def test_knobs_are_declared(name):
    """Every knob is typed, keyword-only and has a default, and nothing swallows a typo."""
    for knob, parameter in compressors.knobs(name).items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, knob
        assert parameter.annotation is not inspect.Parameter.empty, knob
        assert parameter.default is not inspect.Parameter.empty, knob


@every_case
def test_counts_are_exact(name, knobs):
    part = build(name, knobs)
    assert part.out_dim == LLM_DIM or not part.projects
    for grid in GRIDS:
        tokens = outcome(part, *inputs(part, grid))
        count, out_grid = outcome(part.num_tokens, *grid), outcome(part.out_grid, *grid)
        if tokens is UsageError:
            assert count is UsageError, grid
        else:
            assert tokens.shape == (3, count, part.out_dim), grid
            assert tokens.isfinite().all(), grid
            is_there = part.present(*inputs(part, grid))
            assert (is_there is not None) == part.varies
            if part.varies:
                assert is_there.shape == (3, count) and is_there.dtype == torch.bool and is_there.any(1).all()
            assert out_grid is None or out_grid[0] * out_grid[1] == count, grid


@pytest.mark.parametrize("name, knobs", cases_with("grid_policy"))
def test_only_grid_policy_error_refuses_ragged_grids(name, knobs):
    count = outcome(build(name, {"rate": 3, **knobs}).num_tokens, 7, 10)
    refused = knobs.get("grid_policy", "error") == "error" and knobs.get("rate", 3) != 1
    assert (count is UsageError) == refused


@every_case
def test_batch_does_not_matter(name, knobs):
    part = build(name, knobs)
    given = inputs(part)
    many = part(*given)
    torch.testing.assert_close(many, part(*given), rtol=0, atol=0)
    for i in range(len(many)):
        torch.testing.assert_close(part(*(x[i : i + 1] for x in given))[0], many[i], rtol=1e-4, atol=1e-5)


@every_case
def test_no_image_has_no_tokens(name, knobs):
    part = build(name, knobs)
    given = inputs(part, batch=0)
    assert part(*given).shape == (0, part.num_tokens(12, 12), part.out_dim)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_case
def test_half_precision(name, knobs, dtype):
    """Against float32 on the rounded inputs: a selection may not hang on how its scores are rounded."""
    part = build(name, knobs)
    rounded = [x if x.dtype == torch.bool else x.to(dtype) for x in inputs(part)]
    exact = part(*(x if x.dtype == torch.bool else x.float() for x in rounded))
    tokens = part.to(dtype)(*rounded)
    assert tokens.dtype == dtype
    assert (tokens.float() - exact).norm() < 0.05 * exact.norm()


@every_case
def test_autocast(name, knobs):
    """As Lightning's bf16-mixed runs it: float32 weights and features."""
    part = build(name, knobs)
    exact = part(*inputs(part))
    with torch.autocast("cpu", torch.bfloat16):
        tokens = part(*inputs(part))
    assert (tokens.float() - exact).norm() < 0.05 * exact.norm()


@pytest.mark.parametrize("name", compressors.names())
def test_compiles_in_one_piece(name):
    # those that choose patches share one `forward`, and one process compiles the same lines only so often
    torch.compiler.reset()
    layers = {"qformer": 2}.get(name, 1)  # of which only every second one reads the patches
    part = build(name, {"num_layers": layers} if "num_layers" in compressors.knobs(name) else {})
    compiled = torch.compile(part, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs(part)), part(*inputs(part)))


@every_case
def test_runs_without_memory(name, knobs):
    """On the meta device, where sizes and operations are counted."""
    part = build(name, knobs).to("meta")
    tokens = part(*(x.to("meta") for x in inputs(part)))
    assert tokens.shape == (3, part.num_tokens(12, 12), part.out_dim)


@every_case
def test_gradients_reach_everything(name, knobs):
    part = build(name, knobs).train()
    features, *text = inputs(part)
    features.requires_grad_()
    (part(features, *text) * torch.randn(part.out_dim)).sum().backward()
    assert features.grad.isfinite().all() and features.grad.any()
    for key, parameter in part.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        # rightly zero, too: all weights where a window is one patch
        is_shift = key.endswith(SHIFTS) or (name, key) == ("visionselector", "query.bias")
        assert parameter.grad.any() or is_shift or knobs.get("rate") == 1, key


@every_case
def test_state_dict_and_deepcopy(name, knobs):
    part = build(name, knobs)
    other = build(name, knobs, seed=9)
    other.load_state_dict(part.state_dict(), strict=True)
    expected = part(*inputs(part))
    for twin in (other, copy.deepcopy(part)):
        torch.testing.assert_close(twin(*inputs(part)), expected, rtol=0, atol=0)


@every_case
def test_nothing_learned_starts_identical(name, knobs):
    """Equal latents get equal gradients and stay equal: no two rows of a matrix, no two tokens."""
    part = build(name, knobs)
    for key, parameter in part.named_parameters():
        if parameter.ndim > 1:
            assert len(parameter.flatten(1).unique(dim=0)) == len(parameter), key
    tokens = part(*inputs(part))[0]
    expected = part.num_tokens(12, 12)
    if part.varies:  # what is not there may be anything
        tokens = tokens[part.present(*inputs(part))[0]]
        expected = len(tokens)
    assert len(tokens.unique(dim=0)) == expected


ONE_TOKEN = [
    pytest.param(name, {**knobs, "tokens": 1}, id=f"{case.id}-one")
    for case in cases_with("tokens")
    for name, knobs in [case.values]
]


@pytest.mark.parametrize("name, knobs", [*CASES, *ONE_TOKEN])
def test_attention_is_a_distribution_over_the_patches(name, knobs):
    """Also where a budget leaves a single token."""
    part = build(name, knobs)
    for grid in GRIDS:
        given = inputs(part, grid)
        weights = outcome(part.attention, *given)
        assert (weights is None) == (name in NO_ATTENTION) or name not in OURS
        if weights is None:
            continue
        assert (weights is UsageError) == (outcome(part, *given) is UsageError), grid
        if weights is not UsageError:
            assert weights.shape == (3, *grid) and weights.dtype == torch.float32, grid
            assert (weights >= 0).all()
            torch.testing.assert_close(weights.sum((1, 2)), torch.ones(3))


@every_case
def test_what_is_kept_is_where_the_tokens_stand(name, knobs):
    """Each at a patch of its own, of which it has at least as much as of any other patch."""
    part = build(name, knobs)
    for grid in GRIDS:
        features, *text = inputs(part, grid)
        kept = outcome(part.kept, features, *text)
        assert (kept is not None) == (name in KEEPS) or name not in OURS
        if kept is None:
            continue
        count = outcome(part.num_tokens, *grid)
        assert (kept is UsageError) == (count is UsageError), grid
        if kept is UsageError:
            continue
        assert kept.shape == (3, count) and kept.dtype == torch.int64, grid
        assert kept.min() >= -1 and kept.max() < grid[0] * grid[1], grid
        features.requires_grad_()
        tokens = part(features, *text)
        for token in range(count):
            (reached,) = torch.autograd.grad(tokens[:, token].sum(), features, retain_graph=True)
            reached = reached[..., :DIM].abs().amax(-1).flatten(1)  # (B, N)
            for image, patch in enumerate(kept[:, token].tolist()):
                if patch >= 0:
                    assert kept[image].tolist().count(patch) == 1
                    assert reached[image, patch] == reached[image].max() > 0, (grid, token)


@pytest.mark.parametrize("name", compressors.names())
def test_what_chooses_patches_tells_which(name):
    """Wherever tokens are patches, unchanged; at rate 2, at which averages are none."""
    part = build(name, {"rate": 2} if "rate" in compressors.knobs(name) else {})
    features, *text = inputs(part)
    tokens = part(features, *text)
    kept = part.kept(features, *text)
    if part.out_dim != DIM:
        assert kept is None
        return
    patches = features[..., :DIM].flatten(1, 2)
    is_patch = (tokens.unsqueeze(2) == patches.unsqueeze(1)).all(-1)  # (B, tokens, patches)
    if is_patch.any():
        assert torch.equal(is_patch.any(-1), is_patch.gather(2, kept.clamp(min=0).unsqueeze(-1)).squeeze(-1))


# UsageError, of one that cannot be built, reads nothing
TEXT_CASES = [case for case in CASES if getattr(outcome(build, *case.values), "reads_question", False)]


@pytest.mark.parametrize("name, knobs", TEXT_CASES)
def test_text_is_read_where_the_mask_says(name, knobs):
    part = build(name, knobs)
    features, text, mask = inputs(part)
    tokens = part(features, text, mask)
    noise = torch.randn_like(text)
    torch.testing.assert_close(part(features, torch.where(mask[..., None], text, noise), mask), tokens)
    change = (part(features, text + noise, mask) - tokens).abs().amax((1, 2)).min()
    keeps_all = part.kept(features, text, mask) is not None and tokens.shape[1] == 12 * 12
    # rightly none where there is nothing to choose: every patch is kept, or a window is one patch
    assert change > 1e-4 or keeps_all or knobs.get("rate") == 1
    torch.testing.assert_close(part(features, text), part(features, text, torch.ones_like(mask)))


@pytest.mark.parametrize("name, knobs", TEXT_CASES)
def test_text_may_be_padded_on_either_side(name, knobs):
    part = build(name, knobs)
    features, text, mask = inputs(part)
    right = part(features[1:2], text[1:2], mask[1:2])  # 2 of 6 tokens
    left = part(features[1:2], text[1:2].roll(4, 1), mask[1:2].roll(4, 1))
    cut = part(features[1:2], text[1:2, :2])
    torch.testing.assert_close(left, right)
    torch.testing.assert_close(cut, right)


@pytest.mark.parametrize("name, knobs", TEXT_CASES)
def test_text_that_is_missing_is_an_error(name, knobs):
    part = build(name, knobs)
    with pytest.raises(UsageError, match="needs the question"):
        part(inputs(part)[0])
    empty = torch.zeros(3, TEXT, dtype=torch.bool)
    assert part(*inputs(part)[:2], empty).isfinite().all()  # a turn without a question


def test_a_broken_one_is_a_case_of_its_own(monkeypatch):
    """It neither takes the collection of the others away nor passes."""

    class Swallows(Compressor):
        def __init__(self, dim: int, **kw: int):
            super().__init__()
            self.out_dim, self.kw = dim, kw

    monkeypatch.setitem(registry._classes, "swallows", Swallows)
    assert alternatives("swallows") == [{}]
    with pytest.raises(UsageError, match=r"^compressor 'swallows' takes \*\*kw; spell its knobs out$"):
        test_counts_are_exact("swallows", {})
