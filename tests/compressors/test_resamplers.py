"""The resamplers against transformers (Flamingo's and Idefics2's) and torch's attention with a formula."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers.models.idefics.perceiver import IdeficsPerceiverResampler
from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig
from transformers.models.idefics2.modeling_idefics2 import Idefics2PerceiverResampler

import compressors
from compressors import UsageError

FLAMINGO = {
    "patch_norm": "0.context_layer_norm",
    "latent_norm": "0.latents_layer_norm",
    "mlp_norm": "1.ln",
    "attention.query": "0.q_proj",
    "attention.key": "0.k_proj",
    "attention.value": "0.v_proj",
    "attention.out": "0.output_proj",
    "mlp.0": "1.fc",
    "mlp.2": "1.c_proj",
}
IDEFICS2 = {
    "patch_norm": "input_context_norm",
    "latent_norm": "input_latents_norm",
    "mlp_norm": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def randomise(model):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def load(ours, theirs, layers, parts, norm):
    """Their weights into ours."""
    source, weights = theirs.state_dict(), {}
    for key in ours.state_dict():
        if key.startswith("layers."):
            _, index, rest = key.split(".", 2)
            module, _, kind = rest.rpartition(".")
            weights[key] = source[f"{layers}.{index}.{parts[module]}.{kind}"]
        else:
            weights[key] = source[key.replace("norm.", f"{norm}.")]
    assert len(weights) == len(source)
    ours.load_state_dict(weights, strict=True)
    return ours.eval()


@pytest.mark.parametrize("grid", [(6, 6), (3, 7)])
@pytest.mark.parametrize("depth", [1, 3])
def test_equals_idefics(depth, grid):
    config = SimpleNamespace(
        perceiver_config=SimpleNamespace(qk_layer_norms_perceiver=False),
        vision_config=SimpleNamespace(embed_dim=12),
    )
    theirs = randomise(IdeficsPerceiverResampler(config, 12, depth, n_heads=2, head_dim=8, n_latents=5))
    ours = compressors.create("resampler", dim=12, num_queries=5, num_layers=depth, heads=2, head_dim=8)
    load(ours, theirs, "blocks", FLAMINGO, "layer_norm")
    features = torch.randn(2, *grid, 12)
    torch.testing.assert_close(ours(features), theirs(features.flatten(1, 2)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(6, 6), (3, 7)])
@pytest.mark.parametrize("heads, kv_heads", [(4, 2), (2, 2)])
def test_equals_idefics2(heads, kv_heads, grid):
    config = Idefics2PerceiverConfig(
        hidden_size=12,
        resampler_n_latents=5,
        resampler_depth=2,
        resampler_n_heads=heads,
        resampler_head_dim=8,
        num_key_value_heads=kv_heads,
    )
    theirs = randomise(Idefics2PerceiverResampler._from_config(config))
    knobs = {"num_queries": 5, "num_layers": 2, "heads": heads, "head_dim": 8, "kv_heads": kv_heads}
    ours = load(
        compressors.create("resampler", dim=12, form="idefics2", **knobs), theirs, "layers", IDEFICS2, "norm"
    )
    features = torch.randn(2, *grid, 12)
    expected = theirs(features.flatten(1, 2), attention_mask=torch.ones(2, grid[0] * grid[1]))
    torch.testing.assert_close(ours(features), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["flamingo", "idefics2"])
def test_width_of_its_own(form):
    part = compressors.create("resampler", dim=12, form=form, width=20, num_queries=3)
    assert part(torch.randn(2, 4, 5, 12)).shape == (2, 3, 20) and part.out_dim == 20
    assert 0.01 < part.latents.std() < 0.03


def test_key_heads_must_divide():
    with pytest.raises(UsageError, match="kv_heads=3 does not divide heads=8"):
        compressors.create("resampler", dim=12, kv_heads=3)


def position(row, column, width):
    """The formula: a quarter each of sines and cosines of the row, then of the column."""
    values = []
    for place in (row, column):
        for wave in (math.sin, math.cos):
            values += [wave(place / 10000 ** (k / (width // 4))) for k in range(width // 4)]
    return torch.tensor(values)


def grid_positions(rows, columns, width):
    return torch.stack([position(r, c, width) for r in rows for c in columns])


@pytest.mark.parametrize("grid", [(4, 6), (8, 6), (5, 7)])
def test_resampler_2d_is_its_formula(grid):
    """torch's multi-head attention with positions added; queries at whole places, patches between them."""
    torch.manual_seed(1)
    part = randomise(compressors.create("resampler_2d", dim=12, grid=(4, 6), width=16, heads=2))
    reference = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    projections = (part.attend.query, part.attend.key, part.attend.value)
    reference.load_state_dict(
        {
            "in_proj_weight": torch.cat([p.weight for p in projections]),
            "in_proj_bias": torch.cat([p.bias for p in projections]),
            "out_proj.weight": part.attend.out.weight,
            "out_proj.bias": part.attend.out.bias,
        }
    )
    features = torch.randn(2, *grid, 12)
    rows = [(r + 0.5) * 4 / grid[0] - 0.5 for r in range(grid[0])]
    columns = [(c + 0.5) * 6 / grid[1] - 0.5 for c in range(grid[1])]
    patches = part.patch_norm(part.project(features.flatten(1, 2)))
    queries = part.query_norm(part.queries) + grid_positions(range(4), range(6), 16)
    keys = patches + grid_positions(rows, columns, 16)
    read, weights = reference(queries.expand(2, -1, -1), keys, patches)
    torch.testing.assert_close(part(features), part.norm(read), rtol=0, atol=1e-5)
    expected = weights.mean(1).reshape(2, *grid)
    torch.testing.assert_close(part.attention(features), expected, rtol=0, atol=1e-6)


def test_resampler_2d_queries_look_around_their_place():
    """With equal features and identity projections, positions alone decide: near beats far."""
    part = compressors.create("resampler_2d", dim=16, grid=(4, 4), heads=1).eval()
    torch.nn.init.zeros_(part.queries)
    for layer in (part.attend.query, part.attend.key):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    queries, keys, _ = part._prepare_operands(torch.zeros(1, 8, 8, 16))
    best = part.attend.weights(queries, keys)[0, 0].argmax(-1)
    for query, patch in enumerate(best.tolist()):
        assert abs(patch // 8 / 2 - query // 4) <= 1 and abs(patch % 8 / 2 - query % 4) <= 1


def test_resampler_2d_refuses_widths():
    with pytest.raises(UsageError, match="width=18: must be a multiple of 4"):
        compressors.create("resampler_2d", dim=18, heads=2)
    with pytest.raises(UsageError, match="heads=5 does not divide width=16"):
        compressors.create("resampler_2d", dim=16, heads=5)
