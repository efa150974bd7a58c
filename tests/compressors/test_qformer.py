"""The Q-Former against BLIP-2's and InstructBLIP's in transformers, on the same weights."""

import pytest
import torch
from transformers import Blip2QFormerConfig, InstructBlipQFormerConfig
from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel
from transformers.models.instructblip.modeling_instructblip import InstructBlipQFormerModel

import compressors

SIZES = {"hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 64, "encoder_hidden_size": 12}
PARTS = {
    "self_attention.query": "attention.attention.query",
    "self_attention.key": "attention.attention.key",
    "self_attention.value": "attention.attention.value",
    "self_attention.out": "attention.output.dense",
    "self_attention.norm": "attention.output.LayerNorm",
    "query_ffn.mlp.0": "intermediate_query.dense",
    "query_ffn.mlp.2": "output_query.dense",
    "query_ffn.norm": "output_query.LayerNorm",
    "text_ffn.mlp.0": "intermediate.dense",
    "text_ffn.mlp.2": "output.dense",
    "text_ffn.norm": "output.LayerNorm",
}
PARTS |= {
    ours.replace("self_", "cross_"): theirs.replace("attention.", "crossattention.", 1)
    for ours, theirs in PARTS.items()
    if ours.startswith("self_")
}


def make(**knobs):
    torch.manual_seed(0)
    return compressors.create("qformer", dim=12, llm_dim=16, num_queries=5, width=16, heads=4, **knobs).eval()


def load(ours, theirs, norm, others=()):
    """Their weights into ours; whatever of ours is left must be in `others`."""
    source, weights = theirs.state_dict(), dict(others)
    for key in ours.state_dict():
        if key.startswith("layers."):
            _, index, part = key.split(".", 2)
            module, _, kind = part.rpartition(".")
            weights[key] = source[f"encoder.layer.{index}.{PARTS[module]}.{kind}"]
    weights |= {f"norm.{kind}": source[f"{norm}.{kind}"] for kind in ("weight", "bias")}
    ours.load_state_dict(weights, strict=True)


def randomise(model):
    """Values far from initialisation, so that no term is hidden by a zero or a one."""
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("grid", [(6, 6), (3, 7)])
@pytest.mark.parametrize("num_layers, cross_every", [(1, 2), (4, 2), (3, 1), (5, 3)])
def test_equals_blip2(num_layers, cross_every, grid):
    ours = make(num_layers=num_layers, cross_every=cross_every)
    config = Blip2QFormerConfig(**SIZES, num_hidden_layers=num_layers, cross_attention_frequency=cross_every)
    theirs = randomise(Blip2QFormerModel(config))
    load(ours, theirs, "layernorm", {"queries": ours.queries})
    features = torch.randn(2, *grid, 12)
    expected = theirs(ours.queries.expand(2, -1, -1), encoder_hidden_states=features.flatten(1, 2))
    torch.testing.assert_close(ours(features), expected.last_hidden_state, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_layers, cross_every", [(1, 2), (4, 2), (3, 1)])
def test_equals_instructblip(num_layers, cross_every):
    ours = make(num_layers=num_layers, cross_every=cross_every, text=True)
    config = InstructBlipQFormerConfig(
        **SIZES, num_hidden_layers=num_layers, cross_attention_frequency=cross_every, vocab_size=30
    )
    theirs = randomise(InstructBlipQFormerModel(config))
    embeddings = theirs.embeddings
    load(
        ours,
        theirs,
        "embeddings.layernorm",
        {
            "queries": ours.queries,
            "text_projection.weight": torch.eye(16),
            "text_projection.bias": torch.zeros(16),
            "text_position.weight": embeddings.position_embeddings.weight,
        },
    )
    features, ids = torch.randn(2, 3, 7, 12), torch.randint(1, 30, (2, 6))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0]])
    expected = theirs(
        ids,
        attention_mask=torch.cat([torch.ones(2, 5, dtype=torch.long), mask], 1),
        query_embeds=ours.queries.expand(2, -1, -1),
        encoder_hidden_states=features.flatten(1, 2),
    )
    tokens = ours(features, embeddings.word_embeddings(ids), mask)
    torch.testing.assert_close(tokens, expected.last_hidden_state[:, :5], rtol=0, atol=1e-5)


def test_attention_is_the_last_cross_attention():
    """Against transformers' recorded weights; with 4 layers the last that reads the patches is layer 2."""
    ours = make(num_layers=4)
    config = Blip2QFormerConfig(**SIZES, num_hidden_layers=4, cross_attention_frequency=2)
    config._attn_implementation = "eager"
    theirs = randomise(Blip2QFormerModel(config))
    load(ours, theirs, "layernorm", {"queries": ours.queries})
    features = torch.randn(2, 3, 7, 12)
    found = theirs(
        ours.queries.expand(2, -1, -1), encoder_hidden_states=features.flatten(1, 2), output_attentions=True
    )
    expected = found.cross_attentions[-1].mean((1, 2)).reshape(2, 3, 7)
    torch.testing.assert_close(ours.attention(features), expected, rtol=0, atol=1e-6)


def test_initialisation():
    part = make(num_layers=2, text=True)
    assert 0.01 < part.queries.std() < 0.03
    assert 0.015 < part.layers[0].query_ffn.mlp[0].weight.std() < 0.025
    assert not part.layers[0].query_ffn.mlp[0].bias.any()


def test_dropout_acts_in_training_only():
    part, features = make(num_layers=2), torch.randn(1, 4, 4, 12)
    assert part(features).equal(part(features))
    part.train()
    assert not part(features).equal(part(features))
    still = make(num_layers=2, dropout=0.0).train()
    assert still(features).equal(still(features))
