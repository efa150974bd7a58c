"""Cues against the attention that the towers' own eager code returns, and what a tower does not have."""

import pytest
import torch
from test_vision_tower import CONFIGS, HF, pixels, tower_of

import compressors
from compressors.cues import count_channels, parse_cue, split_cues
from compressors.errors import UsageError
from connectors.towers.build import build_tower
from connectors.towers.cues import compute_cue, find_attention, record_blocks

WITH_CUES = [name for name in CONFIGS if name not in ("timm_eva", "timm_pe")]
# of a tower's blocks; what it shares with a text encoder is in tests/llm_adapters/test_tower_text.py
READERS = []
for reader in compressors.names():
    reading_part = compressors.create(reader, dim=8, llm_dim=8)
    if reading_part.needs_cues and not reading_part.needs_tower_text:
        READERS.append(reader)
WITH_CLS = [name for name in WITH_CUES if "siglip" not in name]
families = pytest.mark.parametrize("name", WITH_CUES)


def read_cue(name, cue, images=None):
    tower = tower_of(CONFIGS[name])
    images = pixels() if images is None else images
    with torch.no_grad():
        features = tower.extract_features(images, (), (cue,))
        assert torch.equal(features[..., : tower.dim], tower(images))
    return split_cues(features, tower.dim, (cue,))[1][cue], tower


def compute_attention(name, images):
    """By the model's own eager attention, of each block (B, heads, T, T)."""
    config = CONFIGS[name]
    tower = tower_of(config)
    eager = build_tower(config, -2, "eager").eval()
    eager.load_state_dict(tower.state_dict())
    options = {} if "dino" in config["model_type"] else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        return eager.backbone(images, output_attentions=True, **options).attentions


@pytest.mark.parametrize("name", HF)
@pytest.mark.parametrize("images", [pixels(), pixels(30, 44, 3)], ids=["square", "wide"])
def test_attention_is_what_the_model_itself_returns(name, images):
    height, width = images.shape[-2] // 7, images.shape[-1] // 7
    prefix = {"siglip": 0, "clip": 1, "dinov2": 1, "registers": 4}[name]
    for block, attention in enumerate(compute_attention(name, images), 1):
        mean = attention.mean(1)  # (B, T, T)
        received = mean.mean(1)[:, prefix:].reshape(-1, height, width)
        cue, _ = read_cue(name, f"received:{block}", images)
        torch.testing.assert_close(cue, received, rtol=1e-4, atol=1e-6)
        if name != "siglip":
            received = mean[:, 0, prefix:].reshape(-1, height, width)
        cue, _ = read_cue(name, f"attention:{block}", images)
        torch.testing.assert_close(cue, received, rtol=1e-4, atol=1e-6)


@families
def test_a_block_s_states_are_its_own(name):
    """Of the output's block unless another is named; all that is paid is paid to somebody."""
    tower = tower_of(CONFIGS[name])
    cue = read_cue(name, "received")[0]
    assert cue.shape == (2, 4, 4)
    assert (cue > 0).all() and (cue.sum((1, 2)) <= 1 + 1e-5).all()
    if tower.num_prefix == 0:
        torch.testing.assert_close(cue.sum((1, 2)), torch.ones(2))
    # the output's block is select_layer's
    torch.testing.assert_close(cue, read_cue(name, "received:-2")[0])
    torch.testing.assert_close(cue, read_cue(name, f"received:{tower.depth}")[0])
    assert not torch.allclose(cue, read_cue(name, "received:1")[0])


@families
def test_cues_of_a_tower_in_half_precision_stay_in_float32(name):
    """Beside its patches as they are; without cues all is in the tower's own type."""
    tower = tower_of(CONFIGS[name]).bfloat16()
    with torch.no_grad():
        patches = tower(pixels())
        features = tower.extract_features(pixels(), (), ("received", "keys"))
        assert tower.extract_features(pixels(), (1,)).dtype == torch.bfloat16
    assert patches.dtype == torch.bfloat16 and features.dtype == torch.float32
    assert torch.equal(features[..., : tower.dim], patches.float())
    cues = features[..., tower.dim :]
    assert not torch.equal(cues, cues.bfloat16().float())


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_round_cues(name, dtype):
    """Those of the same states are the same, bit for bit; a pass under autocast may give others."""
    tower = tower_of(CONFIGS[name])
    block = tower.blocks[0]
    with torch.no_grad(), record_blocks({1: block}) as (states, outputs):
        tower(pixels())
    given = (find_attention(block), states[1].to(dtype), outputs[1], tower.num_prefix, tower.has_cls)
    for text in ("received:1", "attention:1", "keys:1"):
        with torch.no_grad():
            expected = compute_cue(parse_cue(text), *given)
            with torch.autocast("cpu", torch.bfloat16):
                found = compute_cue(parse_cue(text), *given)
        assert found.dtype == torch.float32 and torch.equal(found, expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cues = tower.extract_features(pixels(), (), ("received", "keys"))[..., tower.dim :]
    assert not torch.equal(cues, cues.bfloat16().float())


@families
def test_keys_are_the_mean_over_heads(name):
    keys, tower = read_cue(name, "keys")
    assert keys.shape == (2, 4, 4, tower.key_dim) and tower.key_dim == 8


def test_keys_are_what_the_attention_computes():
    """In a tower of one head."""
    config = {**HF["clip"], "num_attention_heads": 1}
    tower = tower_of(config)
    seen = []
    tower.blocks[-1].self_attn.k_proj.register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    with torch.no_grad():
        features = tower.extract_features(pixels(), (), ("keys",))
    keys = split_cues(features, tower.dim, ("keys",))[1]["keys"]
    torch.testing.assert_close(keys.flatten(1, 2), seen[0][:, 1:])


@pytest.mark.parametrize("name", WITH_CLS)
def test_cls_is_the_tower_s_own(name):
    cls, tower = read_cue(name, "cls")
    assert cls.shape == (2, tower.dim)
    if name in HF:
        with torch.no_grad():
            states = tower.hidden_states(pixels(), [tower.depth])[0]
        assert torch.equal(cls, states[:, 0])


def test_levels_and_cues_stand_in_order():
    tower = tower_of(HF["clip"])
    cues = ("keys:2", "attention", "cls")
    with torch.no_grad():
        features = tower.extract_features(pixels(), (1,), cues)
        plain = tower.extract_features(pixels(), (1,))
    assert features.shape[-1] == count_channels(tower.dim, (1,), cues, tower.key_dim)
    states, maps = split_cues(features, tower.dim, cues, (1,))
    assert torch.equal(states, plain)
    assert list(maps) == list(cues)
    for cue in cues:
        assert torch.equal(maps[cue], read_cue("clip", cue)[0])


@pytest.mark.parametrize("name", ["siglip", "timm_siglip"])
def test_a_tower_without_cls_has_none_to_give(name):
    tower = build_tower(CONFIGS[name])
    with pytest.raises(UsageError, match="cue 'cls': this vision tower has no CLS token"):
        tower.check_needs((), ("cls",))
    tower.check_needs((), ("attention", "received:1", "keys:-2"))


@pytest.mark.parametrize("name", ["timm_eva", "timm_pe"])
def test_towers_with_rotary_positions_give_none(name):
    tower = build_tower(CONFIGS[name])
    tower.check_needs((1,))
    with pytest.raises(UsageError, match="gives no cues"):
        tower.check_needs((), ("attention",))


def test_a_block_that_was_not_built():
    tower = build_tower(HF["clip"])
    message = r"^block=-1 \(cue 'attention:-1'\): level -1: this tower was built with select_layer=-2; choose"
    with pytest.raises(UsageError, match=message):
        tower.check_needs((), ("attention:-1",))


@pytest.mark.parametrize("text", ["attn", "attention:", "attention:0", "cls:2", "keys:x", "", "keys:-2 "])
def test_there_are_no_other_cues(text):
    with pytest.raises(UsageError, match="there are attention"):
        parse_cue(text)


def test_missing_channels_are_told():
    with pytest.raises(UsageError, match="features have 12 channels: expected 12 and the cues attention"):
        split_cues(torch.zeros(1, 2, 2, 12), 12, ("attention",))
    with pytest.raises(UsageError, match="features have 13 channels"):
        split_cues(torch.zeros(1, 2, 2, 13), 12, ("attention", "keys"))


def test_gradients_pass_where_the_tower_is_trained():
    tower = tower_of(HF["clip"]).unfreeze()
    features = tower.extract_features(pixels(), (), ("attention", "keys"))
    features[..., tower.dim :].sum().backward()
    assert tower.blocks[-1].self_attn.k_proj.weight.grad.abs().sum() > 0
    frozen = tower.freeze().extract_features(pixels(), (), ("keys",))
    assert not frozen.requires_grad


@families
@pytest.mark.parametrize("part_name", READERS)
def test_compressors_read_cues_of_every_tower(name, part_name):
    """As many tokens as they say; what is kept are places of the tower's own grid."""
    tower = tower_of(CONFIGS[name])
    knobs = {"block": 1} if "block" in compressors.knobs(part_name) else {}
    part = compressors.create(part_name, dim=tower.dim, tokens=5, **knobs)
    tower.check_needs(part.needs_levels, part.needs_cues)
    with torch.no_grad():
        features = tower.extract_features(pixels(), part.needs_levels, part.needs_cues)
        tokens = part(features)
    assert tokens.shape == (2, 5, tower.dim) and tokens.isfinite().all()
    kept = part.kept(features)
    assert kept.shape == (2, 5) and kept.max() < 16
