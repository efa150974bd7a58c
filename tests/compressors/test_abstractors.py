"""C-Abstractor against timm's stages, D-Abstractor against transformers' deformable decoder layers.

Parity with Honeybee's C-Abstractor as a whole is in tests/golden.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from timm_stages import STAGE_NAMES
from transformers import DeformableDetrConfig
from transformers.models.deformable_detr.modeling_deformable_detr import DeformableDetrDecoderLayer

import compressors
from compressors.c_abstractor import make_stage
from compressors.d_abstractor import DecoderLayer, splat_samples
from compressors.positions import LearnedPositions

LAYER = {
    "self_attn.q_proj": "self_attention.query",
    "self_attn.k_proj": "self_attention.key",
    "self_attn.v_proj": "self_attention.value",
    "self_attn.o_proj": "self_attention.out",
    "self_attn_layer_norm": "self_norm",
    "encoder_attn_layer_norm": "deformable_norm",
    "final_layer_norm": "mlp_norm",
    "encoder_attn.sampling_offsets": "deformable.offsets",
    "encoder_attn.attention_weights": "deformable.scores",
    "encoder_attn.value_proj": "deformable.value",
    "encoder_attn.output_proj": "deformable.out",
    "mlp.fc1": "mlp.0",
    "mlp.fc2": "mlp.2",
    "self_attn.out_proj": "self_attention.out",
    "fc1": "mlp.0",
    "fc2": "mlp.2",  # in older versions
}


def randomise(module, std=0.3):
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module.eval()


@pytest.mark.parametrize("in_dim, width, depth", [(12, 16, 3), (16, 16, 1), (6, 20, 2)])
def test_stage_is_timms(in_dim, width, depth):
    build = partial(RegStage, stride=1, dilation=1, act_layer=torch.nn.SiLU, norm_layer=LayerNorm2d)
    theirs, ours = randomise(build(depth, in_dim, width)), make_stage(in_dim, width, depth).eval()
    own, state = ours.state_dict(), {}
    for key, value in theirs.state_dict().items():
        block, _, rest = key.partition(".")
        module, _, kind = rest.rpartition(".")
        target = f"{int(block[1:]) - 1}.{STAGE_NAMES[module]}.{kind}"
        state[target] = value.reshape(own[target].shape)
    ours.load_state_dict(state, strict=True)
    features = torch.randn(2, 7, 10, in_dim)
    expected = theirs(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=2e-5)


def test_positions_fit_any_grid():
    """Added as they are on their own grid; elsewhere resized, here a ramp that bilinear resizing keeps."""
    positions = LearnedPositions((4, 6), 2)
    assert positions(torch.zeros(1, 4, 6, 2))[0].equal(positions.table)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(6.0), indexing="ij")
    positions.table.data = torch.stack([rows, columns], -1)
    found = positions(torch.zeros(1, 2, 3, 2))[0]
    torch.testing.assert_close(found[..., 0], torch.tensor([[0.5], [2.5]]).expand(2, 3))
    torch.testing.assert_close(found[..., 1], torch.tensor([[0.5, 2.5, 4.5]]).expand(2, 3))


def test_c_abstractor_depends_on_where_a_patch_is():
    knobs = {"width": 8, "num_layers": 1, "positions": (9, 9)}
    tokens = compressors.create("c_abstractor", dim=6, llm_dim=8, **knobs)(torch.ones(1, 9, 9, 6))
    assert (tokens[0, 0] - tokens[0, 4]).abs().max() > 1e-4


def their_layer(heads, points):
    config = DeformableDetrConfig(
        d_model=16,
        decoder_attention_heads=heads,
        decoder_n_points=points,
        num_feature_levels=1,
        decoder_ffn_dim=24,
        activation_function="relu",
        use_timm_backbone=False,
        backbone_config={"model_type": "resnet"},
        use_pretrained_backbone=False,
        backbone=None,
    )
    config._attn_implementation = "eager"
    return DeformableDetrDecoderLayer(config)


@pytest.mark.parametrize("grid", [(6, 6), (5, 8)])
@pytest.mark.parametrize("heads, points", [(4, 4), (2, 3)])
def test_decoder_layer_is_deformable_detrs(heads, points, grid):
    theirs, ours = randomise(their_layer(heads, points)), DecoderLayer(16, heads, points, 24).eval()
    state = {
        f"{LAYER[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value
        for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state, strict=True)
    queries, near, features = torch.randn(2, 7, 16), torch.randn(2, 7, 16), torch.randn(2, *grid, 16)
    reference = torch.rand(7, 2)
    expected = theirs(
        queries,
        near,
        reference_points=reference.expand(2, -1, -1).unsqueeze(2),
        spatial_shapes=torch.tensor([grid]),
        spatial_shapes_list=[grid],
        level_start_index=torch.tensor([0]),
        encoder_hidden_states=features.flatten(1, 2),
    )
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(ours(queries, near, reference, features), expected, rtol=0, atol=2e-5)


def make(**knobs):
    torch.manual_seed(0)
    knobs = {"width": 16, "heads": 4, "grid": (2, 3), **knobs}
    return compressors.create("d_abstractor", dim=6, llm_dim=8, **knobs).eval()


def test_d_abstractor_starts_on_a_grid_and_looks_around_it():
    """Reference points are the cells' centres; the heads' points lie around them, each head's on one side."""
    part = make()
    expected = [[x / 3, y / 2] for y in (0.5, 1.5) for x in (0.5, 1.5, 2.5)]
    torch.testing.assert_close(part.reference.data, torch.tensor(expected))
    offsets = part.layers[0].deformable.offsets.bias.view(4, 4, 2)  # heads, points, (x, y) in patches
    directions = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    for point in range(4):
        torch.testing.assert_close(offsets[:, point], (point + 1) * directions, rtol=0, atol=1e-5)


def test_d_abstractor_queries_know_what_is_near_them():
    """Pooled features take the place of position embeddings."""
    part, features = make(num_layers=1), torch.randn(2, 6, 9, 6)
    queries, near, projected = part._prepare_states(features)
    pooled = F.adaptive_avg_pool2d(projected.permute(0, 3, 1, 2), (2, 3)).flatten(2).mT
    torch.testing.assert_close(near, pooled)
    assert part.out_grid(6, 9) == (2, 3) and queries.shape == (2, 6, 16)


def test_splat_is_the_adjoint_of_sampling():
    """The weights by which bilinear samples read each patch, as autograd finds them."""
    values = torch.randn(2, 1, 4, 5, requires_grad=True)
    points, weights = torch.rand(2, 30, 2) * 1.4 - 0.2, torch.rand(2, 30)
    sampled = F.grid_sample(values, 2 * points.unsqueeze(1) - 1, align_corners=False)[:, 0, 0]
    (expected,) = torch.autograd.grad((sampled * weights).sum(), values)
    torch.testing.assert_close(splat_samples(points, weights, (4, 5)), expected[:, 0])
