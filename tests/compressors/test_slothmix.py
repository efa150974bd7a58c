"""slothmix: its groups, a token by a loop from the definition, and what it costs at full size."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import compressors
from compressors.divprune import choose_most_diverse
from compressors.slothmix import group_by_nearest

DIM = 12
PREFILL = 1310e9  # floating point operations of the preset flashsloth's prefill


def make(**knobs) -> compressors.Compressor:
    return compressors.create("slothmix", dim=DIM, **{"heads": 4, **knobs}).eval()


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (3, 4), (7, 10)])
@pytest.mark.parametrize("groups", ["windows", "diverse"])
def test_any_budget_and_every_patch_is_read_once(grid, groups):
    part, features = make(groups=groups, grid=grid), torch.randn(2, 7, 10, DIM)
    tokens, weights = part._read_groups(features)
    assert tokens.shape[1] == part.num_tokens(7, 10) == grid[0] * grid[1]
    assert ((weights > 0).sum(1) == 1).all()
    torch.testing.assert_close(weights.sum((2, 3)), torch.ones(weights.shape[:2]))


def test_windows_are_those_of_average_pooling():
    _, weights = make(groups="windows")._read_groups(torch.randn(1, 6, 9, DIM))
    corners = [weights[0, token].nonzero().amin(0).tolist() for token in range(6)]
    assert corners == [[0, 0], [0, 3], [0, 6], [3, 0], [3, 3], [3, 6]]
    assert ((weights[0] > 0).sum((1, 2)) == 9).all()


def test_neighbours_are_mixed_before_anything_is_left_out():
    """Through a residual a patch reaches its neighbours' tokens; without, a token knows its window alone."""
    features = torch.randn(1, 9, 9, DIM)
    changed = features.clone()
    changed[0, 2, 2] += 1  # a corner of the first window, beside the second
    for depth, reached in ((0, False), (1, True)):
        part = make(groups="windows", depth=depth)
        difference = (part(features) - part(changed)).abs().amax(-1)[0]
        assert difference[0] > 1e-4 and (difference[1] > 1e-6) == reached


def test_a_token_by_a_loop():
    part, features = make(), torch.randn(1, 6, 6, DIM)
    patches, mixed = features.flatten(1, 2)[0], part.trunk(features).flatten(1, 2)[0]
    chosen = choose_most_diverse(patches[None], 4)[0].tolist()
    unit = patches / patches.norm(dim=-1, keepdim=True)
    members: dict[int, list[int]] = {patch: [] for patch in chosen}
    for patch in range(36):

        def nearness(centre, patch=patch):
            apart = ((patch // 6 - centre // 6) ** 2 + (patch % 6 - centre % 6) ** 2) ** 0.5
            return unit[patch] @ unit[centre] - 0.05 * apart

        members[max(chosen, key=nearness)].append(patch)
    _, weights = part._read_groups(features)
    for token, centre in enumerate(chosen):
        mine = members[centre]
        assert weights[0, token].flatten().nonzero().flatten().tolist() == mine
        shares = part.scorer(mixed[mine]).softmax(0)  # (patches, heads)
        read = torch.cat([shares[:, head] @ mixed[mine, 3 * head : 3 * head + 3] for head in range(4)])
        without_place = shares.mean(1) @ patches[mine] + part.merge(read)
        part.position.weight.data.zero_()
        torch.testing.assert_close(part(features)[0, token], without_place)


def test_alike_patches_leave_no_group_empty():
    patches = torch.zeros(1, 9, DIM)
    places = torch.cartesian_prod(torch.arange(3), torch.arange(3)).float()
    assert set(group_by_nearest(patches, torch.tensor([[2, 4, 5]]), places)[0].tolist()) == {0, 1, 2}
    assert make()(torch.zeros(1, 6, 6, DIM)).isfinite().all()


@pytest.mark.parametrize("groups", ["windows", "diverse"])
def test_at_full_size_it_costs_little(groups):
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        compressors.create("slothmix", dim=1152, groups=groups)(torch.randn(1, 27, 27, 1152))
    assert counter.get_total_flops() < 0.01 * PREFILL
