"""The wrapper: coarser token sets are made of finer ones; a scale is drawn for a step or picked for good."""

import pytest
import torch

import compressors
from compressors import Compressor, UsageError

SCALES = (1, 2, 4)


def make(host="sap", scales=SCALES, **knobs):
    torch.manual_seed(0)
    return compressors.create("matryoshka", dim=6, llm_dim=8, host=host, knobs=knobs, scales=scales).eval()


def at(part, scale, features):
    part.pick(scale)
    return part(features)


def test_scale_1_is_the_host():
    part, features = make(rate=2), torch.randn(2, 8, 12, 6)
    assert part(features).equal(part.host(features))
    assert part.attention(features).equal(part.host.attention(features))
    assert part.num_tokens(8, 12) == part.host.num_tokens(8, 12) == 24


def test_pools_are_nested():
    """Pooling by 4 is pooling by 2 twice; pooling of average pooling is average pooling."""
    features = torch.randn(2, 24, 16, 6)
    part = make(rate=2)
    twice = compressors.create("avg_pool", dim=6, rate=2)
    finer, coarser = at(part, 2, features), at(part, 4, features)
    assert part.out_grid(24, 16) == (3, 2)
    torch.testing.assert_close(twice(finer.view(2, 6, 4, 6)), coarser)
    whole = compressors.create("avg_pool", dim=6, rate=8)
    torch.testing.assert_close(at(make("avg_pool", rate=2), 4, features), whole(features))


def test_prefixes_are_nested():
    part, features = make("resampler", num_queries=9), torch.randn(2, 5, 7, 6)
    full = part.host(features)
    for scale, count in ((1, 9), (2, 3), (4, 1)):
        tokens = at(part, scale, features)
        assert part.out_grid(5, 7) is None and tokens.shape[1] == part.num_tokens(5, 7) == count
        assert tokens.equal(full[:, :count])


def test_ragged_pools_keep_the_border():
    part, features = make("avg_pool", rate=3), torch.randn(2, 9, 15, 6)
    tokens = at(part, 2, features)
    assert part.out_grid(9, 15) == (2, 3) and tokens.shape[1] == 6
    torch.testing.assert_close(tokens[:, 2], features[:, :6, 12:].mean((1, 2)))


@pytest.mark.parametrize("host, knobs", [("avg_pool", {"rate": 2}), ("resampler", {"num_queries": 9})])
def test_a_drawn_scale_fills_places_of_the_finest_which_are_to_be_masked(host, knobs):
    part, features = make(host, **knobs), torch.randn(2, 8, 12, 6)
    expected = {scale: at(make(host, **knobs), scale, features) for scale in SCALES}
    count = expected[1].shape[1]
    seen = set()
    part.train()
    for _ in range(40):
        part.draw()
        tokens, visible = part(features), part.visible(8, 12)
        assert tokens.shape[1] == part.num_tokens(8, 12) == count
        assert visible == expected[part.scale].shape[1]
        assert tokens[:, :visible].equal(expected[part.scale]) and not tokens[:, visible:].any()
        seen.add(part.scale)
    assert seen == set(SCALES)
    part.drawn = 4
    assert part.eval()(features).equal(expected[1])  # draws are for training
    part.train().pick(2)
    part.draw()  # training on changes nothing of it
    assert part.scale == 2 and part.visible(8, 12) == part.num_tokens(8, 12)


def test_draws_come_from_the_global_generator():
    draws = []
    for _ in range(2):
        part = make().train()
        torch.manual_seed(3)
        draws.append([part.draw() or part.scale for _ in range(8)])
    assert draws[0] == draws[1]


def test_a_trainer_that_knows_nothing_of_draws_trains_all_scales():
    part, features = make("avg_pool", rate=2).train(), torch.randn(1, 8, 12, 6)
    counts = set()
    for _ in range(40):
        tokens = part(features)
        assert not tokens[:, part.visible(8, 12) :].any()  # as `forward` has drawn
        counts.add(part.visible(8, 12))
    assert counts == {24, 6, 2}
    part.draw()  # a trainer that draws is the only one that does
    drawn = part.scale
    for _ in range(10):
        part(features)
        assert part.scale == drawn
    part.eval()(features)
    assert part.visible(8, 12) == 24


def test_others_draw_nothing():
    part = compressors.create("sap", dim=6)
    part.draw()
    assert part.visible(9, 12) == part.num_tokens(9, 12) == 12
    with pytest.raises(UsageError, match="scale=2: sap is trained at one token count only"):
        part.pick(2)


def test_what_the_host_needs_is_what_it_needs():
    text = make("qformer", width=8, heads=2, num_layers=1, num_queries=4, text=True)
    assert text.needs_text and not text.projects
    assert make("ldp", rate=3).projects and make("downsample").image_rate == 3
    packer = make("token_packer", heads=2, levels=(1, 2))
    assert packer.needs_levels == (1, 2) and packer.out_dim == 8


@pytest.mark.parametrize(
    "knobs, message",
    [
        ({"host": "spa"}, "unknown compressor 'spa'; did you mean 'sap'"),
        ({"host": "matryoshka"}, "host=matryoshka: choose another compressor"),
        *(
            ({"host": host}, f"host={host}: its tokens are in raster order")
            for host in ("divprune", "prumerge", "random", "tome")
        ),
        (
            {"host": "slothmix", "knobs": {"heads": 2}},
            r"host=slothmix: its tokens are in raster order.*; take knobs=\{groups: windows\}, or choose one",
        ),
        ({"knobs": {"rat": 2}}, "compressor 'avg_pool' has no knob 'rat'; did you mean 'rate'"),
        ({"scales": ()}, r"scales=\(\): give at least one"),
        ({"scales": (1, 0)}, r"scales\[1\]=0: must be at least 1"),
    ],
)
def test_refuses(knobs, message):
    with pytest.raises(UsageError, match=message):
        compressors.create("matryoshka", dim=6, **knobs)
    with pytest.raises(UsageError, match="scale=3: choose one of 1, 2, 4"):
        make().pick(3)


SMALL = {"width": 16, "heads": 4, "num_layers": 2, "num_queries": 9}
GRIDS = {"slothmix": {"groups": "windows"}}  # what makes a host of one that is none as it comes


def make_nested(host: str) -> Compressor | None:
    """Behind any compressor; None where it is no host."""
    knobs = {name: value for name, value in SMALL.items() if name in compressors.knobs(host)}
    torch.manual_seed(0)
    for grid_knobs in ({}, GRIDS.get(host, {})):
        try:
            return compressors.create(
                "matryoshka", dim=12, llm_dim=16, host=host, knobs={**knobs, **grid_knobs}, scales=(1, 2)
            ).eval()
        except UsageError as error:
            assert "raster order" in str(error) or host == "matryoshka"
    return None


HOSTS = [name for name in compressors.names() if make_nested(name) is not None]


def test_there_are_hosts_of_both_kinds():
    assert {"avg_pool", "resampler", "slothmix"} <= set(HOSTS)
    assert not {"divprune", "tome", "matryoshka"} & set(HOSTS)


@pytest.mark.parametrize("host", HOSTS)
def test_a_coarse_scale_shows_the_whole_picture(host):
    """What features of the top third and of the bottom third do to the tokens is about as much."""
    part = make_nested(host)
    part.pick(2)
    torch.manual_seed(1)
    features = torch.randn(8, 12, 12, 12, requires_grad=True)
    tokens = part(features, torch.randn(8, 5, 16) if part.needs_text else None)
    (tokens * torch.randn_like(tokens)).sum().backward()
    rows = features.grad.abs().mean((0, 2, 3))
    top, bottom = rows[:4].mean(), rows[-4:].mean()
    assert top / 3 < bottom < top * 3


def test_host_that_needs_the_llms_width():
    with pytest.raises(UsageError, match="compressor 'ldp' needs llm_dim"):
        compressors.create("matryoshka", dim=6, host="ldp")
