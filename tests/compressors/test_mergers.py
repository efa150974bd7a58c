"""patch_merger, conv_downsample, window_attention_pool against transformers; token_packer against slices."""

import pytest
import torch
import torch.nn.functional as F
from transformers import GotOcr2Config, Mistral3Config, MistralConfig, PixtralVisionConfig
from transformers.models.got_ocr2.modeling_got_ocr2 import GotOcr2MultiModalProjector
from transformers.models.mistral3.modeling_mistral3 import Mistral3MultiModalProjector
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchMerger

import compressors
from compressors import UsageError
from compressors.conv_downsample import split_rate


def make(name, **knobs):
    torch.manual_seed(0)
    return compressors.create(name, dim=6, llm_dim=8, **knobs).eval()


def in_order(ours, theirs):
    """Their weights into ours; both sides list them in the same order."""
    pairs = zip(ours.state_dict(), theirs.state_dict().values(), strict=True)
    ours.load_state_dict(dict(pairs))


def by_window(features, rate):
    """(B, H, W, C) -> (B, h * w, rate, rate, C), with slices."""
    rows, columns = features.shape[1] // rate, features.shape[2] // rate
    return torch.stack(
        [
            features[:, r * rate : (r + 1) * rate, c * rate : (c + 1) * rate]
            for r in range(rows)
            for c in range(columns)
        ],
        1,
    )


@pytest.mark.parametrize("rate", [2, 3])
def test_patch_merger_is_qwen2_vls(rate):
    """Theirs takes patches that are already in the order of the windows."""
    ours, theirs = make("patch_merger", rate=rate), PatchMerger(8, 6, rate)
    in_order(ours, theirs)
    features = torch.randn(2, 6, 12, 6)
    expected = theirs(by_window(features, rate).reshape(-1, 6)).view(2, -1, 8)
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rate", [2, 3])
def test_patch_merger_is_mistral3s(rate):
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(hidden_size=6, patch_size=14),
        spatial_merge_size=rate,
        text_config=MistralConfig(hidden_size=8, rms_norm_eps=1e-5),
    )
    theirs = Mistral3MultiModalProjector(config).eval()
    ours = make("patch_merger", rate=rate, form="mistral3")
    in_order(ours, theirs)
    features = torch.randn(2, 6, 12, 6)
    expected = theirs(features.flatten(0, 2), torch.tensor([[6 * 14, 12 * 14]] * 2)).view(2, -1, 8)
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("grid", [(12, 12), (9, 14)])
def test_conv_downsample_is_got_ocr2s(grid):
    text = {"model_type": "qwen2", "hidden_size": 8}
    config = GotOcr2Config(vision_config={"output_channels": 6}, text_config=text)
    theirs, ours = GotOcr2MultiModalProjector(config), make("conv_downsample", rate=4, grid_policy="ceil")
    in_order(ours, theirs)
    features = torch.randn(2, *grid, 6)
    expected = theirs(features.permute(0, 3, 1, 2))
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-6)


def test_conv_downsample_is_deepseek_ocr2s():
    class Config:
        output_channels, downsample_channels = 6, (10, 8)

    module = pytest.importorskip("transformers.models.deepseek_ocr2.modeling_deepseek_ocr2")
    theirs = module.DeepseekOcr2SamVisionProj(Config)
    ours = make("conv_downsample", rate=4, width=10, projector=False)
    in_order(ours, theirs)
    features = torch.randn(2, 12, 8, 6)
    expected = theirs(features.permute(0, 3, 1, 2)).flatten(2).mT
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "policy", "size"),
    [
        (2, "error", 6),
        (3, "error", 9),
        (3, "ceil", 8),
        (4, "ceil", 7),
        (5, "error", 10),
        (6, "ceil", 7),
        (6, "pad", 11),
    ],
)
def test_conv_downsample_reads_every_patch(rate, policy, size):
    features = torch.randn(1, size, size, 6, requires_grad=True)
    tokens = make("conv_downsample", rate=rate, grid_policy=policy)(features)
    assert tokens.shape[1] == (-(-size // rate)) ** 2
    tokens.square().sum().backward()
    assert (features.grad.abs().sum(-1) > 0).all()


def test_strides_of_conv_downsample():
    assert [split_rate(rate) for rate in (1, 2, 3, 4, 6, 9, 5)] == [
        (1, 1),
        (2, 1),
        (3, 1),
        (2, 2),
        (3, 2),
        (3, 3),
        (5, 1),
    ]
    features = torch.randn(1, 9, 7, 6)
    cropped = make("conv_downsample", grid_policy="floor")(features)
    torch.testing.assert_close(cropped, make("conv_downsample")(features[:, :, :6]))
    filled = make("conv_downsample", grid_policy="pad")(features)
    torch.testing.assert_close(filled, make("conv_downsample")(F.pad(features, (0, 0, 0, 2))))


def molmo2(levels):
    pytest.importorskip("transformers.models.molmo2")
    from transformers.models.molmo2.configuration_molmo2 import Molmo2AdapterConfig
    from transformers.models.molmo2.modeling_molmo2 import Molmo2Adapter

    config = Molmo2AdapterConfig(
        hidden_size=6,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=10,
        text_hidden_size=8,
        vision_feature_layer=list(range(levels)),
    )
    return Molmo2Adapter._from_config(config).eval()


MOLMO2 = {
    "image_pooling_2d.q_proj": "pool.query",
    "image_pooling_2d.k_proj": "pool.key",
    "image_pooling_2d.v_proj": "pool.value",
    "image_pooling_2d.o_proj": "pool.out",
    "image_projector.gate_proj": "projector.gate",
    "image_projector.up_proj": "projector.up",
    "image_projector.down_proj": "projector.down",
}


def window_indices(height, width, rate):
    """Patches of each window, -1 where the grid has none."""
    rows = [
        [
            r * width + c if r < height and c < width else -1
            for r in range(top, top + rate)
            for c in range(left, left + rate)
        ]
        for top in range(0, height, rate)
        for left in range(0, width, rate)
    ]
    return torch.tensor(rows)


@pytest.mark.parametrize("grid", [(6, 9), (7, 10)])
@pytest.mark.parametrize("levels", [1, 2])
def test_window_attention_pool_is_molmo2s(levels, grid):
    theirs = molmo2(levels)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    knobs = {"heads": 2, "head_dim": 4, "projector": True, "mlp_width": 10, "levels": tuple(range(1, levels))}
    ours = make("window_attention_pool", grid_policy="ceil", **knobs)
    state = theirs.state_dict()
    ours.load_state_dict(
        {f"{MOLMO2[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in state.items()}
    )
    features = torch.randn(2, *grid, 6 * levels)
    indices = window_indices(*grid, 3)
    shifted = torch.where(indices < 0, indices, indices + grid[0] * grid[1])  # the second image's patches
    expected = theirs(features.flatten(1, 2), torch.cat([indices, shifted])).last_hidden_state
    torch.testing.assert_close(ours(features), expected.view(2, -1, 8), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["window_attention_pool", "token_packer"])
def test_windows_see_nothing_but_themselves(name):
    """Changing a patch changes its window's token, no other; what fills a ragged border changes none."""
    part = make(name, grid_policy="ceil", heads=2)
    features = torch.randn(1, 7, 10, 6)
    before = part(features)
    features[0, 4, 4] += 3  # window (1, 1), its middle: where a bilinear query reads as well
    changed = (part(features) - before).abs().amax(-1)[0] > 1e-5
    assert changed.nonzero().flatten().tolist() == [5]


def packed_by_hand(part, features, rate):
    """Window by window: the middle patch asks (bilinear at an odd rate), all patches of the window answer."""
    norm = part.value_norm(part.value(features)), part.key_norm(part.key(features))
    values, keys = (by_window(x, rate).flatten(2, 3) for x in norm)
    query = part.query_norm(part.query(by_window(features, rate)[:, :, rate // 2, rate // 2]))
    q, k, v = part.attend.query(query), part.attend.key(keys), part.attend.value(values)
    q, k, v = (x.unflatten(-1, (part.attend.heads, -1)) for x in (q, k, v))
    weights = (torch.einsum("bnhd,bnmhd->bnhm", q, k) / q.shape[-1] ** 0.5).softmax(-1)
    return part.mlp(part.attend.out(torch.einsum("bnhm,bnmhd->bnhd", weights, v).flatten(2)))


def test_token_packer_window_by_window():
    part, features = make("token_packer", heads=2), torch.randn(2, 6, 9, 6)
    torch.testing.assert_close(part(features), packed_by_hand(part, features, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid, policy", [((7, 10), "ceil"), ((7, 10), "floor"), ((2, 11), "ceil")])
def test_token_packer_asks_with_the_middle_of_each_window(grid, policy):
    """On ragged grids, too: of a window that ends before its middle with the last patch."""
    part, features = make("token_packer", heads=2, grid_policy=policy), torch.randn(1, *grid, 6)
    rows, columns = part.out_grid(*grid)
    middles = torch.stack(
        [
            features[:, min(3 * r + 1, grid[0] - 1), min(3 * c + 1, grid[1] - 1)]
            for r in range(rows)
            for c in range(columns)
        ],
        1,
    )
    expected = part.query_norm(part.query(middles))
    torch.testing.assert_close(part._prepare_operands(features)[0].view_as(expected), expected)


@pytest.mark.parametrize("name", ["window_attention_pool", "token_packer"])
def test_levels_that_do_not_come_along(name):
    part = make(name, heads=2, levels=(3, -1))
    assert part.needs_levels == (3, -1)
    with pytest.raises(UsageError, match=r"levels=\(3, -1\): features have 6 channels, expected 18, the"):
        part(torch.randn(1, 6, 6, 6))


@torch.no_grad()
def test_quecc_s_smaller_border_windows_leave_the_others_as_they_are():
    """Under `ceil`; neither their own filled places nor the question on these are read."""
    part, features = make("quecc", heads=2, grid_policy="ceil"), torch.randn(1, 7, 8, 6)
    text = torch.randn(1, 3, part.text[0].in_features)
    tokens = part(features, text).view(3, 3, 6)
    whole = part(features[:, :6, :6], text).view(2, 2, 6)
    torch.testing.assert_close(tokens[:2, :2], whole)
    keys = part.value(features[:, 6:, :3]).mean((1, 2))  # the window has three patches
    part.attend.query.weight.zero_()
    part.attend.query.bias.zero_()  # it reads all of them alike then
    read = part(features, text).view(3, 3, 6)[2, 0]
    torch.testing.assert_close(read, part.attend.out(part.attend.value(keys))[0])
