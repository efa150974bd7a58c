"""A DINOv2 tower back from an exported ONNX graph: names, positions and sizes, then the same output.

The exporter keeps the names of biases and norms, but folds the transpose of a linear layer into its weight
and leaves that nameless; the node that multiplies by it still has the layer's name. The position embedding
falls into two nameless constants, one for CLS and one for the patches.
"""

from collections.abc import Iterable
from math import isqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from compressors.errors import UsageError

BACKBONE_PREFIX = "backbone."
HEAD_WIDTH = 64  # of every published DINOv2


class OnnxNode(NamedTuple):
    """One operation of a graph."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()


def read_graph(path: Path) -> tuple[dict[str, np.ndarray], list[OnnxNode]]:
    """The constants and the operations of an ONNX file."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    nodes = [OnnxNode(n.op_type, n.name, tuple(n.input), tuple(n.output)) for n in graph.node]
    return arrays, nodes


def collect_weights(arrays: dict[str, np.ndarray], nodes: Iterable[OnnxNode]) -> dict[str, Tensor]:
    """The tower's weights under the names that checkpoints on the hub have."""
    nodes = [node for node in nodes if format_dotted_name(node).startswith(BACKBONE_PREFIX)]
    found = {name: array for name, array in arrays.items() if name.startswith(BACKBONE_PREFIX)}
    for node in nodes:
        weight = next((arrays[name] for name in node.inputs[1:] if name in arrays), None)
        if node.op == "MatMul" and weight is not None:
            found[f"{format_dotted_name(node).rpartition('.')[0]}.weight"] = weight.T
    found[f"{BACKBONE_PREFIX}embeddings.position_embeddings"] = np.concatenate(
        find_position_embeddings(arrays, nodes), axis=1
    )
    return {
        name.removeprefix(BACKBONE_PREFIX): torch.from_numpy(np.array(array, np.float32))
        for name, array in found.items()
    }


def format_dotted_name(node: OnnxNode) -> str:
    """`/backbone/encoder/layer.0/norm1/Add` as a module's name: backbone.encoder.layer.0.norm1.Add."""
    return node.name.strip("/").replace("/", ".")


def find_position_embeddings(arrays: dict[str, np.ndarray], nodes: Iterable[OnnxNode]) -> list[np.ndarray]:
    """The position embedding of CLS (1, 1, C) and of the patches (1, P, C)."""
    folder = f"{BACKBONE_PREFIX}embeddings."
    read = [name for node in nodes if format_dotted_name(node).startswith(folder) for name in node.inputs]
    nameless = {name for name in read if name in arrays and not name.startswith(BACKBONE_PREFIX)}
    parts = sorted((arrays[name] for name in nameless if arrays[name].ndim == 3), key=lambda a: a.shape[1])
    if len(parts) != 2:
        raise UsageError(f"the ONNX graph has {len(parts)} constants for positions, not CLS and patches")
    return parts


def infer_config(state: dict[str, Tensor]) -> Dinov2Config:
    """The configuration that the weights' shapes tell."""
    width, _, patch, _ = state["embeddings.patch_embeddings.projection.weight"].shape
    side = isqrt(state["embeddings.position_embeddings"].shape[1] - 1)
    layers = 1 + max(int(name.split(".")[2]) for name in state if name.startswith("encoder.layer."))
    inner = len(state["encoder.layer.0.mlp.fc1.bias"])
    return Dinov2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD_WIDTH,
        mlp_ratio=inner // width,
        image_size=side * patch,
        patch_size=patch,
        use_mask_token=False,
    )


def save_checkpoint(state: dict[str, Tensor], out: Path) -> None:
    """Writes the weights as a checkpoint that `load_tower` takes."""
    config = infer_config(state)
    config.architectures = [Dinov2Model.__name__]
    config.save_pretrained(out)
    contiguous = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(contiguous, out / "model.safetensors", {"format": "pt"})


@torch.inference_mode()
def run_checkpoint(folder: Path, pixels: Tensor) -> Tensor:
    """What the checkpoint makes of (B, 3, h, w), after its final norm: (B, 1 + patches, C)."""
    model, info = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    wrong = sorted({*info["missing_keys"], *info["unexpected_keys"]})
    if wrong:
        raise UsageError(f"the ONNX graph does not hold a DINOv2: {len(wrong)} weights amiss, as {wrong[0]}")
    return model.eval()(pixels).last_hidden_state


def run_onnx(path: Path, pixels: Tensor) -> Tensor:
    """What ONNX Runtime makes of the same pixels at the same place of the graph."""
    import onnx
    import onnxruntime

    model = onnx.load(path)
    norm = [n for n in model.graph.node if n.name.startswith("/backbone/layernorm/")]
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(norm[-1].output[0]))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: pixels.numpy()})
    return torch.from_numpy(found)
