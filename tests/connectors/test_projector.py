import pytest
import torch
from torch import nn

from compressors.errors import UsageError
from connectors.projector import registry


@pytest.mark.parametrize("name", registry.names())
def test_width_changes_and_nothing_else(name):
    projector = registry.create(name, in_dim=16, llm_dim=16 if name == "identity" else 24)
    assert projector.in_dim == 16
    tokens = torch.randn(2, 5, 16)
    assert projector(tokens).shape == (2, 5, projector.out_dim)
    torch.testing.assert_close(projector(tokens)[1:, 2:], projector(tokens[1:, 2:]))  # token by token
    assert all(p.requires_grad for p in projector.parameters())


def test_names():
    assert registry.names() == ["identity", "linear", "mlp2x_gelu"]
    with pytest.raises(UsageError, match="did you mean 'mlp2x_gelu'"):
        registry.create("mlp2_gelu", in_dim=1, llm_dim=1)


def test_mlp_has_the_released_keys_and_an_exact_gelu():
    projector = registry.create("mlp2x_gelu", in_dim=1152, llm_dim=2560)
    shapes = {key: list(value.shape) for key, value in projector.state_dict().items()}
    weights = {"0.weight": [2560, 1152], "2.weight": [2560, 2560]}
    assert shapes == {**weights, "0.bias": [2560], "2.bias": [2560]}
    tokens = torch.randn(1, 3, 1152)
    expected = nn.functional.linear(tokens, projector[0].weight, projector[0].bias)
    expected = nn.functional.linear(nn.functional.gelu(expected), projector[2].weight, projector[2].bias)
    torch.testing.assert_close(projector(tokens), expected)


def test_knobs():
    deep = registry.create("mlp2x_gelu", in_dim=4, llm_dim=4, depth=3)
    assert [type(layer).__name__ for layer in deep] == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert registry.create("linear", in_dim=4, llm_dim=4, bias=False).bias is None
    with pytest.raises(UsageError, match="depth=0: must be at least 1"):
        registry.create("mlp2x_gelu", in_dim=4, llm_dim=4, depth=0)
    with pytest.raises(UsageError, match="no knob 'dpth'; did you mean 'depth'"):
        registry.create("mlp2x_gelu", in_dim=4, llm_dim=4, dpth=1)


def test_identity_is_the_same_tensor_and_wants_equal_widths():
    tokens = torch.randn(1, 2, 8)
    assert registry.create("identity", in_dim=8, llm_dim=8)(tokens) is tokens
    with pytest.raises(UsageError, match="the visual tokens are 8 wide and the LLM 16") as error:
        registry.create("identity", in_dim=8, llm_dim=16)
    assert "\n" not in str(error.value)
